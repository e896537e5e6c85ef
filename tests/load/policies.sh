#!/bin/bash
# How long calls of policies take: the first-party ones, and the example in each language that was built. Usage: policies.sh [CALLS]
set -euo pipefail
cd "$(dirname "$0")/../.."
# With the whole workspace, so that nothing is compiled for a second time.
cargo build --quiet --locked --release --workspace --example call-times
target/release/examples/call-times "$@"

# Guest, instance and host together, as callgrind counts them.
command -v valgrind >/dev/null || { echo "no callgrind counts: valgrind is not installed"; exit 0; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
calls=1000
# It would count every byte of a `rep stosb`.
export GLIBC_TUNABLES=glibc.cpu.x86_rep_stosb_threshold=1000000000:glibc.cpu.x86_rep_movsb_threshold=1000000000
echo
echo "callgrind, instructions a call in all"
for names in routing caching redaction redaction,routing,caching; do
    valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*asked_so_often*' --callgrind-out-file="$scratch/out" \
        target/release/examples/call-times $calls --only "$names" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; exit 1; }
    counted=$(sed -n 's/^==.*Collected : *\([0-9]*\).*/\1/p' "$scratch/log")
    printf '%-26s %9d\n' "$names" $((counted / calls))
done
