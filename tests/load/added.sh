#!/bin/bash
# What masking, restoring and the cache add to a request: the same gateway without policies, with redaction of all kinds, and with a cache,
# one connection, in turn, several rounds, medians of the p50. The cloud is a process on this machine, over TLS.
#
# Usage: added.sh [--seconds S] [--rounds N] [--keep]
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
seconds=2 rounds=5
# shellcheck source=tests/load/servers.sh
source "$here/servers.sh"
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,7p' "$0" >&2; exit 2 ;;
    esac
done
for name in busy-cloud postern-load postern; do
    [[ -x $release/$name ]] || { echo "$release/$name is missing: cargo build --release" >&2; exit 1; }
done

key=sk-bench-0123456789
"$release/busy-cloud" --out "$dir/pki" --parent-death >"$dir/cloud.out" 2>"$dir/cloud.err" &
started+=("$!")
await "$dir/cloud.out" base_url $!
base_url=$(field "$dir/cloud.out" base_url)
control=$(field "$dir/cloud.out" control)

declare -A url_of
# Starts a gateway of the name $1 with the configuration from the standard input.
start_postern() {
    mkdir "$dir/$1"
    sed -e "s|@DIR@|$dir/$1|g; s|@PKI@|$dir/pki|g; s|@BASE_URL@|$base_url|g" >"$dir/$1/postern.yaml"
    BENCH_KEY=$key "$release/postern" run --config "$dir/$1/postern.yaml" >"$dir/$1.out" 2>"$dir/$1.err" &
    started+=("$!")
    await "$dir/$1.out" '^postern ready' $!
    url_of[$1]=https://$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/$1.out" | head -1)/v1
    "$release/postern" certs issue --config "$dir/$1/postern.yaml" --id spiffe://bench.test/clerk/load --out "$dir/$1/clerk" >&2
}
bare=$(sed '/^policies:/,$d' "$here/postern.yaml")
start_postern bare <<<"$bare"
start_postern masked <<<"$bare
policies:
  - name: redact
    component: builtin:redaction
    config: {kinds: [email, phone, id-card, bank-card, iban, passport, plate, ip, mac, url-credentials, secret]}"
start_postern cached <<<"$bare
cache: {memory: 64MiB}"

# Puts the load $2 on the gateway $1 and prints one line of JSON.
load() {
    local more=()
    [[ $2 == *stream* ]] && more+=(--stream)
    RUST_BACKTRACE=0 "$release/postern-load" --url "${url_of[$1]}/chat/completions" --ca "$dir/$1/clerk/ca.pem" \
        --cert "$dir/$1/clerk/cert.pem" --key "$dir/$1/clerk/key.pem" --body "$dir/$2.json" --connections 1 \
        --seconds "$seconds" --warmup 0.5 --json "${more[@]}"
}

python3 "$here/added.py" bodies "$dir"
# $1: the load; $2: how the cloud answers; then the gateways.
compare() {
    local name=$1 switches=$2 round who
    shift 2
    python3 "$here/added.py" switch "$control/switches" "$switches"
    for ((round = 1; round <= rounds; round++)); do
        for who; do
            echo "round $round of $rounds: $name, $who" >&2
            printf '%s\t%s\t%s\n' "$name" "$who" "$(load "$who" "$name")" >>"$dir/results"
        done
    done
}
short='{"answer": "Yes, of course."}'
for size in 1 16 128; do compare "prompt-$size" "$short" bare masked; done
compare hit "$short" bare cached
compare stream-long '{"answer_tokens": 2000, "chunk_chars": 4}' bare masked
compare stream-paced '{"chunk_chars": 8, "token_ms": 20}' bare masked
python3 "$here/added.py" table "$dir/results"
