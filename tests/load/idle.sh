#!/bin/bash
# What streams that say nothing cost the gateway in memory: opens many over HTTP/2 with client certificates, against a cloud that
# begins each answer and then hangs; waits until all have begun, holds them, and looks whether all are still there.
#
# Usage: idle.sh [--streams N] [--per-connection N] [--hold S] [--policies] [--http1] [--keep]
# With --http1 the gateway has a connection of its own to the cloud for each stream: haproxy stands between, and offers no HTTP/2.
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder); the client is made below target/peers.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
streams=10000 per_connection=200 hold=30 policies=0 http1=0
# shellcheck source=tests/load/servers.sh
source "$here/servers.sh"
while (($#)); do
    case $1 in
        --streams) streams=$2; shift 2 ;;
        --per-connection) per_connection=$2; shift 2 ;;
        --hold) hold=$2; shift 2 ;;
        --policies) policies=1; shift ;;
        --http1) http1=1; shift ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,7p' "$0" >&2; exit 2 ;;
    esac
done
for name in busy-cloud postern; do
    [[ -x $release/$name ]] || { echo "$release/$name is missing: cargo build --release" >&2; exit 1; }
done
python=$here/../../target/peers/h2
venv "$python" "$here/peers/h2.txt" || { echo "pip cannot install h2" >&2; exit 1; }
raise_files
files=$(ulimit -n)
needed=$((streams / per_connection + 500 + http1 * streams))
if [[ $files != unlimited ]] && ((needed > files)); then
    streams=$(((files - 500) * per_connection / (1 + http1 * per_connection)))
    echo "only $streams streams: this machine lets a process have no more than $files files" >&2
fi

"$release/busy-cloud" --out "$dir/pki" --parent-death --switches '{"hang_after_chunks": 3}' >"$dir/cloud.out" 2>"$dir/cloud.err" &
cloud=$!
started+=("$cloud")
await "$dir/cloud.out" base_url "$cloud"
base_url=$(field "$dir/cloud.out" base_url)

if ((http1)); then
    haproxy=$(program haproxy haproxy)
    port=$(free_port)
    authority=${base_url#https://}
    cat "$dir/pki/server-cert.pem" "$dir/pki/server-key.pem" >"$dir/haproxy.pem"
    cat >"$dir/haproxy.cfg" <<HAPROXY
global
    maxconn 20000
    # It asks for files for twice as many connections, which it does not need towards the cloud.
    no strict-limits
    tune.ssl.cachesize 0
defaults
    mode http
    timeout connect 10s
    timeout client 20m
    timeout server 20m
    http-reuse always
frontend gateway
    bind 127.0.0.1:$port ssl crt $dir/haproxy.pem alpn http/1.1
    default_backend cloud
backend cloud
    server cloud ${authority%/v1} ssl verify required ca-file $dir/pki/ca.pem sni str(localhost) verifyhost localhost alpn h2
HAPROXY
    "$haproxy" -db -f "$dir/haproxy.cfg" >"$dir/haproxy.out" 2>"$dir/haproxy.err" &
    started+=("$!")
    await_port "$port" $! || { cat "$dir/haproxy.err" >&2; exit 1; }
    base_url=https://127.0.0.1:$port/v1
fi

{
    sed -e "s|@DIR@|$dir|g; s|@PKI@|$dir/pki|g; s|@BASE_URL@|$base_url|g" "$here/postern.yaml" |
        if ((policies)); then cat; else sed '/^policies:/,$d'; fi
    echo "limits: {connections: 20000, requests: 20000, bodies: 512MiB}"
    echo "timeouts: {first_token: 10m, idle: 10m, total: 20m, queue: 10m}"
} >"$dir/postern.yaml"
BENCH_KEY=sk-bench-0123456789 "$release/postern" run --config "$dir/postern.yaml" >"$dir/postern.out" 2>"$dir/postern.err" &
postern=$!
started+=("$postern")
await "$dir/postern.out" '^postern ready' "$postern"
gateway=$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/postern.out" | head -1)
"$release/postern" certs issue --config "$dir/postern.yaml" --id spiffe://bench.test/clerk/load --out "$dir/clerk" >&2

before=$(memory_kib "$postern")
began=$EPOCHREALTIME
mkfifo "$dir/hold"
"$python/bin/python" "$here/idle.py" "$gateway" "$streams" "$per_connection" "$dir/clerk/ca.pem" "$dir/clerk/cert.pem" \
    "$dir/clerk/key.pem" <"$dir/hold" >"$dir/client.out" 2>"$dir/client.err" &
client=$!
started+=("$client")
exec 8>"$dir/hold"
while [[ ! -s $dir/client.out ]]; do
    kill -0 "$client" 2>/dev/null || { cat "$dir/client.err" >&2; exit 1; }
    sleep 0.1
done
took=$(awk "BEGIN {printf \"%.1f\", $EPOCHREALTIME - $began}")
sleep 2
begun=$(memory_kib "$postern")
sleep "$hold"
after=$(memory_kib "$postern")
clients=$(memory_kib "$client")
exec 8>&-
wait "$client"
python3 - "$dir/client.out" "$streams" "$per_connection" "$hold" "$before" "$begun" "$after" "$clients" "$took" <<'PYTHON'
import json, sys
begun, held = (json.loads(line) for line in open(sys.argv[1], encoding="utf-8"))
streams, per_connection, hold, before, then, after, client = map(int, sys.argv[2:-1])
print(f"{streams} streams asked for, {per_connection} a connection")
took = sys.argv[-1]
print(f"begun in {took:>6} s     {begun['open']:6}   others: {begun['others'] or 'none'}")
print(f"open after {hold:3} s      {held['open']:6}   others: {held['others'] or 'none'}")
print(f"memory of the gateway {before / 1024:6.0f} MiB before, {then / 1024:.0f} when all had begun, {after / 1024:.0f} after {hold} s")
if held["open"]:
    print(f"                      {(after - before) * 1024 / held['open']:6.0f} bytes for each stream")
print(f"memory of the client  {client / 1024:6.0f} MiB")
sys.exit(held["open"] != streams)
PYTHON
