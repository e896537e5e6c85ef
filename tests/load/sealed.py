"""Bodies for sealed.sh, and its tables.

sealed.py bodies FOLDER; sealed.py switch URL SWITCHES; sealed.py table RESULTS MEMORY. A line of RESULTS is load, way, processor time in
ms of the gateway and of the connector before and after, and the report of postern-load in JSON. A line of MEMORY is what was done, and
resident memory then and at most, in KiB.
"""

import collections
import json
import pathlib
import statistics
import sys

import added

LONG_TOKENS = 2000
# As sealed.sh tells the cloud, at 20 ms.
PACED_TOKENS = 25
WAYS = ["mtls-1", "mtls-2", "sealed"]


def bodies(folder):
    folder = pathlib.Path(folder)
    question = added.SENTENCES[0]
    for name, text in {"small": question, "body-1": added.prose(977), "body-7": added.prose(6836)}.items():
        (folder / f"{name}.json").write_text(json.dumps(added.body(text)))
    for name in ("stream-long", "stream-paced"):
        (folder / f"{name}.json").write_text(json.dumps(added.body(question, stream=True)))


def read(path):
    runs = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        load, who, before, after, report = line.rstrip("\n").split("\t")
        report = json.loads(report)
        if report["errors"] or report["statuses"].keys() != {"200"}:
            sys.exit(f"{load}, {who}: {report['errors']} failed: {report['first_error']}, {report['statuses']}")
        spent = [int(then) - int(first) for first, then in zip(before.split(), after.split())]
        # An answer that the end cut off cost its part, and is not among those that were completed; where they take long, time says it.
        requests = report["completed"]
        if load.startswith("stream-paced"):
            requests = report["connections"] * report["seconds"] * 1000 / report["p50_ms"]
        report["gateway_us"], report["connector_us"] = (ms * 1000 / requests for ms in spent)
        runs[load, who].append(report)
    return runs


def tables(results, memory):
    runs = read(results)

    def median(load, who, column="p50_ms"):
        return statistics.median(report[column] for report in runs[load, who])

    def times(what, load, per, unit, scale):
        one, two, sealed = (median(load, who) for who in WAYS)
        print(f"| {what} | {one:.3f} | {two:.3f} | {sealed:.3f} | {(sealed - two) * scale / per:.2f} {unit} |")

    print("\n| p50 of | mTLS, HTTP/1.1, ms | mTLS, HTTP/2, ms | sealed, ms | added |")
    print("| --- | ---: | ---: | ---: | ---: |")
    times("a small request", "small-1", 1, "ms", 1)
    times("a prompt of 1 MB", "body-1-1", 1, "ms/MB", 1)
    times("a prompt of 7 MB", "body-7-1", 7, "ms/MB", 1)
    times(f"a stream of {LONG_TOKENS} tokens that come at once", "stream-long-1", LONG_TOKENS, "µs/token", 1000)

    print("\n| between two tokens, 20 ms apart | the cloud itself, ms | mTLS, HTTP/1.1, ms | mTLS, HTTP/2, ms | sealed, ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in ("p50", "p99"):
        cells = [median("stream-paced-1", who, f"gap_{name}_ms") for who in ["cloud", *WAYS]]
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")

    print("\n| processor time of | gateway, mTLS, HTTP/2 | gateway, sealed | connector |")
    print("| --- | ---: | ---: | ---: |")
    for what, load, per, unit, scale in (
        ("a small request", "small-1", 1, "µs", 1),
        ("a MB of a prompt, of 7", "body-7-1", 7, "ms", 1000),
        ("a token of 64 streams, 20 ms apart", "stream-paced-64", PACED_TOKENS, "µs", 1),
    ):
        cells = [("mtls-2", "gateway_us"), ("sealed", "gateway_us"), ("sealed", "connector_us")]
        cells = [median(load, who, column) / per / scale for who, column in cells]
        print(f"| {what} | " + " | ".join(f"{cell:.1f} {unit}" for cell in cells) + " |")

    print("\n| the connector's memory | then, MiB | at most so far, MiB |")
    print("| --- | ---: | ---: |")
    for line in open(memory, encoding="utf-8"):
        what, kib = line.rstrip("\n").split("\t")
        now, most = (int(number) / 1024 for number in kib.split())
        print(f"| {what} | {now:.1f} | {most:.1f} |")


if __name__ == "__main__":
    {"bodies": bodies, "switch": added.switch, "table": tables}[sys.argv[1]](*sys.argv[2:])
