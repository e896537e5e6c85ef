"""Medians over the rounds of bench.sh, as tables: python3 table.py RESULTS WARMUP_SECONDS.

A line of RESULTS is mode, server, processor time of that server in ms (warm-up included), its memory under the load in KiB, and the
report of postern-load in JSON.
"""

import collections
import json
import statistics
import sys

MODES = {
    "plain": "whole answers",
    "stream": "streams of about 20 events, all at once",
    "paced": "streams of about 20 events, 20 ms between two",
}
PEERS = {"nginx": "nginx", "litellm": "litellm", "postern-interval": "interval"}
# What each column shows, and how: those that postern-load does not report are left out.
COLUMNS = {
    "requests_per_second": ("requests/s", 11, 0),
    "p50_ms": ("p50 ms", 9, 3),
    "p99_ms": ("p99 ms", 9, 3),
    "ttfb_p50_ms": ("first byte ms", 14, 3),
    "ttft_p50_ms": ("first text ms", 14, 3),
    "gap_p50_ms": ("gap p50 ms", 11, 3),
    "gap_p99_ms": ("gap p99 ms", 11, 3),
    "cpu_us": ("cpu µs/request", 15, 0),
    "memory_mib": ("memory MiB", 11, 1),
}


def cpu_us_per_request(cpu_ms, report, warmup):
    """The warm-up's requests are not counted; their rate is taken to be that of the others."""
    requests = report["requests_per_second"] * (report["seconds"] + warmup)
    return cpu_ms * 1000 / requests if requests else None


def read(path, warmup):
    runs = collections.defaultdict(list)
    for line in open(path, encoding="utf-8"):
        mode, server, cpu_ms, memory_kib, report = line.rstrip("\n").split("\t")
        report = json.loads(report)
        report["cpu_us"] = cpu_us_per_request(int(cpu_ms), report, warmup)
        report["memory_mib"] = int(memory_kib) / 1024
        if not report["completed"]:
            report |= {name: None for name in report if name.endswith("_ms")}
        runs[mode, report["connections"], server].append(report)
    return runs


class Medians:
    """Of one mode and number of connections, by server and column."""

    def __init__(self, runs, mode, connections):
        self.reports = {run[2]: reports for run, reports in runs.items() if run[:2] == (mode, connections)}

    def of(self, server, column):
        values = [report[column] for report in self.reports.get(server, []) if report.get(column) is not None]
        return statistics.median(values) if values else None

    def times(self, server, peer, column):
        """How many times that of the peer."""
        own, theirs = self.of(server, column), self.of(peer, column)
        return own / theirs if own is not None and theirs else None

    def added(self, server, column):
        """To that of the cloud itself."""
        own, theirs = self.of(server, column), self.of("direct", column)
        return own - theirs if own is not None and theirs is not None else None


def shown(value, width, digits):
    return f"{'—':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def spread(reports):
    rates = [report["requests_per_second"] for report in reports]
    return (max(rates) - min(rates)) / max(statistics.median(rates), 1e-9)


def faults(report):
    return report["errors"] + sum(count for status, count in report["statuses"].items() if status != "200")


def table(runs, mode):
    own = {run: reports for run, reports in runs.items() if run[0] == mode}
    columns = [name for name in COLUMNS if any(report.get(name) is not None for reports in own.values() for report in reports)]
    peers = [peer for peer in PEERS if any(server == peer for _, _, server in own)]
    print(f"\n{MODES[mode]}")
    heads = "".join(f"{COLUMNS[name][0]:>{COLUMNS[name][1]}}" + ratio_heads(name, peers) for name in columns)
    print(f"connections  {'server':16}{heads}  spread  faults")
    last = None
    for _, connections, server in sorted(own, key=lambda run: run[1]):
        medians = Medians(runs, mode, connections)
        line = f"{connections if connections != last else '':>11}  {server:16}"
        for name in columns:
            line += shown(medians.of(server, name), *COLUMNS[name][1:])
            for peer in ratios(name, peers):
                line += shown(medians.times(server, peer, name), 10, 2)
        reports = medians.reports[server]
        print(f"{line} {spread(reports):7.0%} {sum(map(faults, reports)):7}")
        last = connections


def ratios(name, peers):
    if name == "requests_per_second":
        return peers
    return [peer for peer in peers if peer == "nginx"] if name == "p99_ms" else []


def ratio_heads(name, peers):
    return "".join(f"{'×' + PEERS[peer]:>10}" for peer in ratios(name, peers))


def aims(runs):
    """What Postern wants to reach, beside what it did."""
    connections = sorted({run[1] for run in runs})

    def row(words, aim, values, worst):
        values = {count: value for count, value in values.items() if value is not None}
        if values:
            count = worst(values, key=values.get)
            met = values[count] >= aim if worst is min else values[count] <= aim
            sign = "≥" if worst is min else "≤"
            print(f"  {words:54} {sign} {aim:<6} {values[count]:9.3f} at {count:<4} {'yes' if met else 'no'}")

    def over(mode, server, peer, column):
        return {count: Medians(runs, mode, count).times(server, peer, column) for count in connections}

    def each(mode, server, column):
        return {count: Medians(runs, mode, count).of(server, column) for count in connections}

    def added(mode, server, column):
        return {1: Medians(runs, mode, 1).added(server, column)}

    print("\nwhat is wanted, and what was measured, at which number of connections (×: where it was worst)")
    for mode in (mode for mode in ("plain", "stream") if any(run[0] == mode for run in runs)):
        row(f"{mode}: requests/s without policies, ×nginx", 0.7, over(mode, "postern-bare", "nginx", "requests_per_second"), min)
        row(f"{mode}: requests/s with three policies, ×nginx", 0.4, over(mode, "postern", "nginx", "requests_per_second"), min)
        row(f"{mode}: p99 without policies, ×nginx", 2, over(mode, "postern-bare", "nginx", "p99_ms"), max)
        row(f"{mode}: p99 with three policies, ×nginx", 2, over(mode, "postern", "nginx", "p99_ms"), max)
        row(f"{mode}: requests/s with three policies, ×LiteLLM", 100, over(mode, "postern", "litellm", "requests_per_second"), min)
    row("plain: p50 added without policies, ms", 0.1, added("plain", "postern-bare", "p50_ms"), max)
    row("plain: p50 added with three policies, ms", 0.3, added("plain", "postern", "p50_ms"), max)
    row("stream: added to the first text, ms", 1, added("stream", "postern", "ttft_p50_ms"), max)
    row("stream: memory, MiB", 64, {256: Medians(runs, "stream", 256).of("postern", "memory_mib")}, max)
    # A stall is a gap of twice the cloud's own.
    row("paced: gap p99, ms", 40, each("paced", "postern", "gap_p99_ms"), max)


def main():
    runs = read(sys.argv[1], float(sys.argv[2]))
    for mode in MODES:
        if any(run[0] == mode for run in runs):
            table(runs, mode)
    if any(server == "postern" for _, _, server in runs):
        aims(runs)
    bad = [(run, report) for run, reports in sorted(runs.items()) for report in reports if faults(report)]
    for (mode, connections, server), report in bad:
        others = {status: count for status, count in report["statuses"].items() if status != "200"}
        errors = f"{report['errors']} errors ({report['first_error']})"
        print(f"{server}, {mode}, {connections} connections: statuses {others}, {errors}")
    # Those of Python and Node break down under loads that the others bear: no fault of ours.
    return 1 if any(server not in ("litellm", "portkey") for (_, _, server), _ in bad) else 0


sys.exit(main())
