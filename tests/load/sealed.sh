#!/bin/bash
# What sealing costs: first the cryptography alone, on one core; then through the real thing, the same requests at the same gateway over
# plain mTLS with HTTP/1.1, with HTTP/2, and sealed through `postern connect`, in turn, several rounds, medians. All three keep their
# connections. The connector's own to the gateway speaks HTTP/2, so that is what sealed is compared with; `added` also has the way through
# one more process. No policies, no cache; the cloud is a process on this machine, over TLS. Then what the connector takes of memory.
#
# Usage: sealed.sh [--seconds S] [--rounds N] [--through] [--keep]
# With --through: without the cryptography alone.
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
seconds=2 rounds=5 warmup=0.5 alone=1
# shellcheck source=tests/load/servers.sh
source "$here/servers.sh"
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --through) alone=0; shift ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,9p' "$0" >&2; exit 2 ;;
    esac
done
for name in busy-cloud postern-load postern; do
    [[ -x $release/$name ]] || { echo "$release/$name is missing: cargo build --release" >&2; exit 1; }
done
if ((alone)); then
    # With the whole workspace, so that nothing is compiled for a second time.
    (cd "$here/../.." && cargo build --quiet --locked --release --workspace --example cost)
    "$release/examples/cost"
fi

key=sk-bench-0123456789
"$release/busy-cloud" --out "$dir/pki" --parent-death >"$dir/cloud.out" 2>"$dir/cloud.err" &
started+=("$!")
await "$dir/cloud.out" base_url $!
base_url=$(field "$dir/cloud.out" base_url)
control=$(field "$dir/cloud.out" control)

sed '/^policies:/,$d' "$here/postern.yaml" |
    sed -e "s|@DIR@|$dir|g; s|@PKI@|$dir/pki|g; s|@BASE_URL@|$base_url|g" >"$dir/postern.yaml"
BENCH_KEY=$key "$release/postern" run --config "$dir/postern.yaml" >"$dir/postern.out" 2>"$dir/postern.err" &
gateway=$!
started+=("$gateway")
await "$dir/postern.out" '^postern ready' "$gateway"
address=$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/postern.out" | head -1)
issue() { "$release/postern" certs issue --config "$dir/postern.yaml" --id "spiffe://bench.test/clerk/$1" --out "$dir/$1" >&2; }
issue mtls

# A process for each measurement of memory: a peak is that of all its life.
declare -A pid_of url_of
for who in sealed streams bodies; do
    issue "$who"
    "$release/postern" connect --listen 127.0.0.1:0 --gateway "$address" --dir "$dir/$who" >"$dir/$who.out" 2>"$dir/$who.err" &
    pid_of[$who]=$!
    started+=("$!")
    await "$dir/$who.out" '^postern connect ready' $!
    url_of[$who]=$(sed -n 's/.*url=\([^ ]*\).*/\1/p' "$dir/$who.out")
done

# Puts the load $2 on the way $1, over $3 connections for $4 s, and prints one line of JSON.
load() {
    local more=()
    case $1 in
        cloud) more=(--url "$base_url/chat/completions" --ca "$dir/pki/ca.pem" --header "Authorization: Bearer $key") ;;
        mtls*) more=(--url "https://$address/v1/chat/completions" --ca "$dir/mtls/ca.pem" --cert "$dir/mtls/cert.pem" --key "$dir/mtls/key.pem") ;;
        *) more=(--url "${url_of[$1]}/chat/completions" --header "Authorization: Bearer $(cat "$dir/$1/token")") ;;
    esac
    [[ $1 != mtls-2 ]] || more+=(--http2)
    [[ $2 != stream-* ]] || more+=(--stream)
    RUST_BACKTRACE=0 "$release/postern-load" "${more[@]}" --body "$dir/$2.json" --connections "$3" --seconds "$4" --warmup "$warmup" --json
}
# Processor time so far: the gateway's, and that of the connector $1, if it is one.
cpu() { echo "$(cpu_ms "$gateway") $([[ ${pid_of[$1]:-} ]] && cpu_ms "${pid_of[$1]}" || echo 0)"; }
# Resident memory of the connector $1 now, and the most so far, in KiB.
memory() { awk '/^VmRSS:/ {now = $2} /^VmHWM:/ {most = $2} END {print now, most}' "/proc/${pid_of[$1]}/status"; }

# $1: the load; $2: over how many connections; $3: for how many seconds; $4: how the cloud answers; then the ways.
compare() {
    local name=$1 count=$2 span=$3 switches=$4 round who report looking
    shift 4
    python3 -B "$here/sealed.py" switch "$control/switches" "$switches"
    for ((round = 1; round <= rounds; round++)); do
        for who; do
            echo "round $round of $rounds: $name, $count connections, $who" >&2
            # Without the warm-up, in which there are the handshakes.
            (trap - EXIT; sleep "$warmup"; cpu "$who" >"$dir/before") &
            looking=$!
            report=$(load "$who" "$name" "$count" "$span")
            wait "$looking"
            printf '%s\t%s\t%s\t%s\t%s\n' "$name-$count" "$who" "$(cat "$dir/before")" "$(cpu "$who")" "$report" >>"$dir/results"
        done
    done
}

python3 -B "$here/sealed.py" bodies "$dir"
short='{"answer": "Yes, of course."}'
for name in small body-1 body-7; do compare "$name" 1 "$seconds" "$short" mtls-1 mtls-2 sealed; done
compare stream-long 1 "$seconds" '{"answer_tokens": 2000, "chunk_chars": 4}' mtls-1 mtls-2 sealed
paced='{"answer_tokens": 25, "chunk_chars": 4, "token_ms": 20}'
compare stream-paced 1 $((2 * seconds)) "$paced" cloud mtls-1 mtls-2 sealed
compare stream-paced 64 $((2 * seconds)) "$paced" mtls-2 sealed

# $1: what was measured; $2: at which connector.
remember() { printf '%s\t%s\n' "$1" "$(memory "$2")" >>"$dir/memory"; }
remember "idle, connected" streams
(trap - EXIT; sleep "$(awk "BEGIN {print $warmup + 1.5 * $seconds}")"; remember "64 streams at once" streams) &
looking=$!
load streams stream-paced 64 $((2 * seconds)) >/dev/null
wait "$looking"
python3 -B "$here/sealed.py" switch "$control/switches" "$short"
for count in 1 4; do
    load bodies body-7 "$count" "$seconds" >/dev/null
    remember "after bodies of 7 MB, $count at a time" bodies
done
python3 -B "$here/sealed.py" table "$dir/results" "$dir/memory"
