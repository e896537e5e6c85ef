#!/bin/bash
# The busy-cloud day: the same requests for a client that tries again by itself, for Postern with two nodes, and with the engine on
# this machine as well. Prints a table; with --figures also puts it into docs/dispatch.md, and writes the plots of docs/figures and
# the simulation of the three ways to balance nodes.
#
# Usage: day.sh [--seconds S] [--rate R] [--figures]
set -euo pipefail
cd "$(dirname "$0")/../.."

release=${POSTERN_RELEASE:-target/release}
seconds=300 rate=2 figures=0
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --rate) rate=$2; shift 2 ;;
        --figures) figures=1; shift ;;
        *) sed -n '2,6p' "$0" >&2; exit 2 ;;
    esac
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
echo "three days of $seconds s each, $rate requests a second" >&2
"$release/busy-day" --seconds "$seconds" --rate "$rate" >"$dir/day.json"
page=()
((figures)) && page=(docs/dispatch.md)
python3 tests/load/day_table.py "$seconds" "$rate" "${page[@]}" <"$dir/day.json"
if ((figures)); then
    mkdir -p docs/figures
    python3 tests/load/plot.py day <"$dir/day.json" >docs/figures/day.svg
    cargo build --quiet --locked --release --workspace --examples
    "$release/examples/balance-simulation" >docs/figures/balance.csv
    python3 tests/load/plot.py balance <docs/figures/balance.csv >docs/figures/balance.svg
fi
