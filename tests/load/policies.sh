#!/bin/bash
# How long calls of policies take: the first-party ones, and the example in each language that was built. Usage: policies.sh [CALLS]
set -euo pipefail
cd "$(dirname "$0")/../.."
# With the whole workspace, so that nothing is compiled for a second time.
cargo build --quiet --locked --release --workspace --example call-times
target/release/examples/call-times "$@"

# Guest, instance and host together, as callgrind counts them: what 1,000 more calls take.
command -v valgrind >/dev/null || { echo "no callgrind counts: valgrind is not installed"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
counted() {
    valgrind --tool=callgrind --callgrind-out-file="$scratch/out" \
        target/release/examples/call-times "$2" --only "$1" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
    sed -n 's/^==.*Collected : *\([0-9]*\).*/\1/p' "$scratch/log"
}
echo
echo "callgrind, instructions a call in all"
for names in routing caching redaction redaction,routing,caching; do
    few=$(counted "$names" 100)
    many=$(counted "$names" 1100)
    printf '%-26s %9d\n' "$names" $(((many - few) / 1000))
done
