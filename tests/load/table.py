"""Medians over the rounds of bench.sh, as one table: python3 table.py RESULTS WARMUP_SECONDS.

A line of RESULTS is server, processor time of that server in ms (warm-up included), report of postern-load in JSON.
"""

import collections
import json
import statistics
import sys


def cpu_us_per_request(cpu_ms, report, warmup):
    """The warm-up's requests are not counted; their rate is taken to be that of the others."""
    requests = report["requests_per_second"] * (report["seconds"] + warmup)
    return cpu_ms * 1000 / max(requests, 1)


def main():
    path, warmup = sys.argv[1], float(sys.argv[2])
    runs = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        server, cpu_ms, report = line.rstrip("\n").split("\t")
        report = json.loads(report)
        report["cpu_us"] = cpu_us_per_request(int(cpu_ms), report, warmup)
        runs[report["connections"], server].append(report)

    def median(connections, server, column):
        return statistics.median(report[column] for report in runs[connections, server])

    print("connections  server    requests/s   ×nginx    p50 ms   ×nginx    p99 ms  first byte ms  cpu µs/request  spread  errors")
    for connections, server in sorted(runs, key=lambda run: run[0]):
        of = lambda column, server=server: median(connections, server, column)
        peer = "nginx" if (connections, "nginx") in runs else server
        rate_ratio = of("requests_per_second") / max(of("requests_per_second", peer), 1e-9)
        p50_ratio = of("p50_ms") / max(of("p50_ms", peer), 1e-9)
        reports = runs[connections, server]
        rates = [report["requests_per_second"] for report in reports]
        spread = (max(rates) - min(rates)) / max(statistics.median(rates), 1e-9)
        bad = sum(r["errors"] + sum(n for status, n in r["statuses"].items() if status != "200") for r in reports)
        print(f"{connections:11}  {server:8} {of('requests_per_second'):11.0f} {rate_ratio:8.2f} {of('p50_ms'):9.3f} "
              f"{p50_ratio:8.2f} {of('p99_ms'):9.3f} {of('ttfb_p50_ms'):14.3f} {of('cpu_us'):15.0f} {spread:7.0%} {bad:7}")
    for (connections, server), reports in sorted(runs.items()):
        for report in reports:
            others = {status: count for status, count in report["statuses"].items() if status != "200"}
            if others or report["errors"]:
                print(f"{server} at {connections}: statuses {others}, {report['errors']} errors ({report['first_error']})")
    return 1 if any(report["errors"] for reports in runs.values() for report in reports) else 0


sys.exit(main())
