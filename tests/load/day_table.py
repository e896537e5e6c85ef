"""The table of a busy-cloud day, as Markdown: python3 day_table.py SECONDS RATE [PAGE] < busy-day.json

With PAGE, what stands there between the comments `day` and `/day` is replaced by it.
"""

import json
import sys

NAMES = {"alone": "client alone, tries again", "nodes": "Postern: cloud, two nodes", "local": "the same, and the engine here"}
HEAD = """\
| | answered | mean | p50 | p99 | cloud | nodes | local | continued | $ per 1000 | coefficient | 429s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
BEGIN, END = "<!-- day -->\n", "<!-- /day -->\n"


def row(report):
    share = lambda name: f"{100 * report['by_placement'].get(name, 0) / max(report['answered'], 1):.1f} %"
    seconds = lambda field: f"{report[field] / 1000:.2f} s"
    answered = f"{report['answered']} of {report['requests']} ({100 * report['answered'] / report['requests']:.2f} %)"
    cells = [NAMES[report["set_up"]], answered, seconds("mean_ms"), seconds("p50_ms"), seconds("p99_ms")]
    cells += [share(name) for name in ("cloud", "nodes", "local")]
    cells += [str(report["continued"]), f"{report['dollars_per_1000']:.4f}", f"{report['coefficient']:.2f}", str(report["too_many"])]
    return f"| {' | '.join(cells)} |\n"


def tell(report):
    for failure, count in report["failures"].items():
        print(f"  {NAMES[report['set_up']]}: {count} × {failure}", file=sys.stderr)
    classified, here = report["classified"]
    if classified:
        print(f"  {here} of {classified} classified requests were answered on this machine", file=sys.stderr)


def main(seconds, rate, page=None):
    reports = json.load(sys.stdin)
    table = HEAD + "".join(map(row, reports)) + f"\n({seconds} s each, {rate} requests a second; 429s: how often the cloud said that it was too much.)\n"
    print(table)
    for report in reports:
        tell(report)
    if page:
        text = open(page, encoding="utf-8").read()
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        open(page, "w", encoding="utf-8").write(before + BEGIN + table + END + after)


main(*sys.argv[1:])
