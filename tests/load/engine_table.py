"""Medians over the rounds of engine.sh, as a table: python3 engine_table.py RESULTS THREADS. `times`: how many times as fast the engine
is; `spread`: of the engine's own rounds.

A line of RESULTS is who was measured, and its report in JSON.
"""

import collections
import json
import statistics
import sys

PEERS = ["llama.cpp", "candle"]
ROWS = {
    "prompt_512": "prompt of 512",
    "streams_1": "answers, 1 at a time",
    "streams_8": "answers, 8 at a time",
    "streams_32": "answers, 32 at a time",
}


def read(path):
    runs, alone = collections.defaultdict(list), None
    for line in open(path, encoding="utf-8"):
        name, report = line.rstrip("\n").split("\t")
        if name == "alone":
            alone = json.loads(report)
        else:
            runs[name].append(json.loads(report))
    return runs, alone


def rates(runs, name, row):
    return [report[row] for report in runs[name] if report.get(row) is not None]


def speeds(runs, threads):
    heads = "".join(f"{peer:>12} {'times':>9}    " for peer in PEERS)
    print(f"{f'tokens/s, {threads} threads':22} {'engine':>12}{heads}  spread")
    for row, words in ROWS.items():
        own = rates(runs, "engine", row)
        middle = statistics.median(own)
        line = f"{words:22} {middle:12.1f}"
        for peer in PEERS:
            theirs = rates(runs, peer, row)
            # Not measured, or not to be had from it.
            line += f"{statistics.median(theirs):12.1f} {middle / statistics.median(theirs):9.2f}    " if theirs else f"{'—':>12} {'—':>9}    "
        print(line + f" {(max(own) - min(own)) / middle:7.0%}")


def others(alone):
    memory, quote, pace = alone["memory"], alone["quote"], alone["pace"]
    print(f"\nmemory of the engine alone, the file has {alone['file_mb']} MB")
    for when, words in (("idle", "idle after loading"), ("streams_32", "32 answers at a time")):
        print(f"  {words:22} resident {memory[when]['resident_mb']:7.1f} MB, anonymous {memory[when]['anonymous_mb']:7.1f} MB")
    print(f"an answer that quotes its prompt ({quote['words_of_the_prompt']:.0%} of its words, {quote['tokens']} tokens): "
          f"{quote['guessing']} tokens/s with guesses, {quote['not_guessing']} without, ×{quote['times_faster']}; "
          f"the same text: {'yes' if quote['same_text'] else 'NO'}")
    print(f"between two tokens of {pace['streams']} answers           p50 ms   p95 ms   p99 ms")
    for when, words in (("alone", "alone"), ("beside_prompt", f"while a prompt of {pace['prompt_tokens']} is read")):
        print(f"  {words:40} {pace[when]['p50_ms']:8.2f} {pace[when]['p95_ms']:8.2f} {pace[when]['p99_ms']:8.2f}")
    slower = [pace["beside_prompt"][p] / pace["alone"][p] for p in ("p50_ms", "p95_ms", "p99_ms")]
    print(f"  {'×alone':40} {slower[0]:8.2f} {slower[1]:8.2f} {slower[2]:8.2f}   (the prompt took {pace['prompt_seconds']} s)")
    grammar, prefix = alone["grammar"], alone["prefix"]
    print(f"a token under a JSON schema: {grammar['ms_per_token']} ms, without {grammar['ms_per_token_without']} ms")
    print(f"first token of a prompt of {prefix['prompt_tokens']}: {prefix['first_token_ms']} ms, of the same again "
          f"{prefix['again_ms']} ms ({prefix['cached_tokens']} tokens were there), ×{prefix['times_faster']}")


def main():
    runs, alone = read(sys.argv[1])
    speeds(runs, sys.argv[2])
    others(alone)


main()
