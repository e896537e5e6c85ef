"""Bodies for added.sh, and its table.

added.py bodies FOLDER; added.py switch URL SWITCHES; added.py table RESULTS. A line of RESULTS is load, gateway, and the report of
postern-load in JSON.
"""

import collections
import json
import pathlib
import statistics
import sys
import urllib.request

SENTENCES = [
    "Please tell the customer in plain words what the household policy covers after a burst pipe.",
    "The repair itself is one thing, the drying of walls and floors another, and the hotel a third.",
    "She wrote on 12 March that the furniture stood in the water for two days before anybody came.",
    "Say what has to be sent to us, by when, and who looks at it when it has arrived.",
]
# One value in a kilobyte, as in letters that an office writes.
VALUE = "Her address is person{}@example.org, and she would like to hear from us soon. "
LONG_TOKENS = 2000


def prose(kib):
    text, number = "", 0
    while len(text) < kib * 1024:
        text += VALUE.format(number)
        for n in range(10):
            text += SENTENCES[(number + n) % len(SENTENCES)] + " "
        number += 1
    return text[: kib * 1024]


def body(text, **more):
    return {"model": "chat", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}


def bodies(folder):
    folder = pathlib.Path(folder)
    for kib in (1, 16, 128):
        (folder / f"prompt-{kib}.json").write_text(json.dumps(body(prose(kib))))
    (folder / "hit.json").write_text(json.dumps(body("How many days of leave do I have?")))
    question = VALUE.format(1) + SENTENCES[0]
    (folder / "stream-long.json").write_text(json.dumps(body(question, stream=True)))
    (folder / "stream-paced.json").write_text(json.dumps(body(question, stream=True)))


def switch(url, text):
    switches = json.loads(text)
    tokens = switches.pop("answer_tokens", None)
    if tokens:
        words = " ".join(SENTENCES * (tokens // 20))
        switches["answer"] = words[: tokens * 4]
    request = urllib.request.Request(url, json.dumps(switches).encode(), method="PUT")
    urllib.request.urlopen(request, timeout=10)


def table(path):
    runs = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        load, who, report = line.rstrip("\n").split("\t")
        report = json.loads(report)
        if report["errors"]:
            sys.exit(f"{load} at {who}: {report['errors']} failed: {report['first_error']}")
        runs[load, who].append(report)

    def p50(load, who, column="p50_ms"):
        return statistics.median(report[column] for report in runs[load, who])

    def row(what, before, after, added, unit):
        print(f"| {what} | {before:.3f} | {after:.3f} | {added:.2f} {unit} |")

    print("| p50 of | bare, ms | with it, ms | added |")
    print("| --- | --- | --- | --- |")
    for kib in (1, 16, 128):
        before, after = p50(f"prompt-{kib}", "bare"), p50(f"prompt-{kib}", "masked")
        row(f"a prompt of {kib} KB, masked, all kinds", before, after, (after - before) * 1000 / kib, "µs/KB")
    before, after = p50("stream-long", "bare"), p50("stream-long", "masked")
    row(f"a stream of {LONG_TOKENS} tokens, restored", before, after, (after - before) * 1000 / LONG_TOKENS, "µs/token")
    before, after = p50("stream-paced", "bare", "ttft_p50_ms"), p50("stream-paced", "masked", "ttft_p50_ms")
    row("the first text of a stream, masked and restored", before, after, after - before, "ms")
    before, after = p50("hit", "bare"), p50("hit", "cached")
    row("an answer from the cache", before, after, after - before, "ms")


if __name__ == "__main__":
    {"bodies": bodies, "switch": switch, "table": table}[sys.argv[1]](*sys.argv[2:])
