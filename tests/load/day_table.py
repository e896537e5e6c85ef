"""The table of a busy-cloud day, as Markdown: python3 day_table.py < busy-day.json"""

import json
import sys

NAMES = {"alone": "client alone, tries again", "nodes": "Postern: cloud, two nodes", "local": "the same, and the engine here"}
print("| | answered | mean | p50 | p99 | cloud | nodes | local | continued | $ per 1000 | coefficient | 429s |")
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for report in json.load(sys.stdin):
    share = lambda name: f"{100 * report['by_placement'].get(name, 0) / max(report['answered'], 1):.1f} %"
    seconds = lambda field: f"{report[field] / 1000:.2f} s"
    answered = f"{report['answered']} of {report['requests']} ({100 * report['answered'] / report['requests']:.2f} %)"
    print(f"| {NAMES[report['set_up']]} | {answered} | {seconds('mean_ms')} | {seconds('p50_ms')} | {seconds('p99_ms')} "
          f"| {share('cloud')} | {share('nodes')} | {share('local')} | {report['continued']} "
          f"| {report['dollars_per_1000']:.4f} | {report['coefficient']:.2f} | {report['too_many']} |")
    for failure, count in report["failures"].items():
        print(f"  {NAMES[report['set_up']]}: {count} × {failure}", file=sys.stderr)
    classified, here = report["classified"]
    if classified:
        print(f"  {here} of {classified} classified requests were answered on this machine", file=sys.stderr)
