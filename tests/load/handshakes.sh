#!/bin/bash
# Full TLS 1.3 handshakes with client certificates, Postern beside nginx in one run (the same leafs, 16 clients, each request on a
# new connection), and what idle connections cost in memory.
#
# Usage: handshakes.sh [--seconds S] [--rounds N] [--idle N]
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder). nginx is installed by bench.sh.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
seconds=5 rounds=5 idle=10000
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --idle) idle=$2; shift 2 ;;
        *) sed -n '2,6p' "$0" >&2; exit 2 ;;
    esac
done
nginx=$(command -v nginx || echo /usr/sbin/nginx)
[[ -x $nginx ]] || { echo "nginx is missing: run tests/load/bench.sh once, which installs it" >&2; exit 1; }
ulimit -n "$(ulimit -Hn)"

dir=$(mktemp -d)
started=()
finish() {
    local pid
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap finish EXIT

cat >"$dir/postern.yaml" <<YAML
listen: 127.0.0.1:0
admin: 127.0.0.1:0
state_dir: $dir/state
names: [localhost]
trust: {domain: bench.test}
identities: [{match: spiffe://bench.test/clerk/*}]
targets: [{name: nowhere, placement: cloud, clearance: internal, openai: {base_url: "https://127.0.0.1:1/v1"}, models: {chat: chat}}]
YAML
"$release/postern" run --config "$dir/postern.yaml" >"$dir/out" 2>"$dir/err" &
supervisor=$!
started+=("$supervisor")
for ((i = 0; i < 300; i++)); do grep -q '^postern ready' "$dir/out" && break; sleep 0.1; done
gateway=$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/out" | head -1)
[[ $gateway ]] || { cat "$dir/err" >&2; exit 1; }
issue() { "$release/postern" certs issue --config "$dir/postern.yaml" --id "spiffe://bench.test/$1" --out "$dir/$1" >&2; }
issue clerk/load
# nginx serves with the gateway's kind of leaf: same authority, same curve, same length of chain.
mkdir "$dir/gateway"
cp "$dir/clerk/load/ca.pem" "$dir/gateway/ca.pem"
signer=$dir/state/authority/intermediate.pem
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=nginx" \
    -keyout "$dir/gateway/key.pem" -out "$dir/nginx.csr" 2>/dev/null
printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\n' >"$dir/nginx.ext"
openssl x509 -req -in "$dir/nginx.csr" -CA "$signer" -CAkey "$signer" -CAcreateserial -CAserial "$dir/serial" -days 1 \
    -extfile "$dir/nginx.ext" -out "$dir/gateway/cert.pem" 2>/dev/null
openssl x509 -in "$signer" >>"$dir/gateway/cert.pem"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$dir/nginx.conf" <<NGINX
daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
pid $dir/nginx.pid;
error_log $dir/error.log warn;
events { worker_connections 16384; }
http {
    access_log off;
    keepalive_timeout 600s;
    server {
        listen 127.0.0.1:$port ssl backlog=4096;
        ssl_protocols TLSv1.3;
        ssl_certificate $dir/gateway/cert.pem;
        ssl_certificate_key $dir/gateway/key.pem;
        ssl_client_certificate $dir/gateway/ca.pem;
        ssl_verify_client on;
        ssl_verify_depth 3;
        ssl_session_tickets off;
        ssl_session_cache off;
        location / { return 200 "{}"; }
    }
}
NGINX
"$nginx" -p "$dir" -c "$dir/nginx.conf" >"$dir/nginx.out" 2>"$dir/nginx.err" &
nginx_pid=$!
started+=("$nginx_pid")
for ((i = 0; i < 100; i++)); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
kill -0 "$nginx_pid" || { cat "$dir/nginx.err" "$dir/error.log" >&2; exit 1; }

client=("$release/postern-load" --ca "$dir/clerk/load/ca.pem" --cert "$dir/clerk/load/cert.pem" --key "$dir/clerk/load/key.pem")
shake() {
    "${client[@]}" --url "https://$1/v1/models" --handshakes --connections 16 --seconds "$seconds" --json "${@:3}" |
        sed "s/^/$2\t/" >>"$dir/results"
}
for ((round = 1; round <= rounds; round++)); do
    echo "round $round of $rounds" >&2
    shake "localhost:$port" nginx --classical
    shake "localhost:${gateway##*:}" postern --classical
    shake "localhost:${gateway##*:}" "postern, X25519MLKEM768"
done
python3 - "$dir/results" <<'PYTHON'
import collections, json, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1], encoding="utf-8"):
    server, report = line.rstrip("\n").split("\t")
    runs[server].append(json.loads(report))
rate = {server: statistics.median(r["requests_per_second"] for r in reports) for server, reports in runs.items()}
print("full mTLS handshakes with one small answer, 16 clients; medians")
for server, reports in runs.items():
    p50, p99 = (statistics.median(r[column] for r in reports) for column in ("p50_ms", "p99_ms"))
    errors = sum(r["errors"] for r in reports)
    print(f"{server:26} {rate[server]:8.0f}/s  ×nginx {rate[server] / rate['nginx']:5.2f}  p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  errors {errors}")
PYTHON

# Resident memory of a process and its children in KiB, without the supervisor.
resident() {
    local pid total=0
    for pid in $(cat "/proc/$1/task/$1/children"); do
        total=$((total + $(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/status")))
    done
    echo "$total"
}
hold() {
    local before after
    before=$(resident "$2")
    mkfifo "$dir/hold.$3"
    "${client[@]}" --url "https://localhost:$1/" --idle "$idle" <"$dir/hold.$3" >"$dir/open.$3" &
    local holder=$!
    exec 8>"$dir/hold.$3"
    while ! grep -q open "$dir/open.$3"; do kill -0 "$holder" || exit 1; sleep 0.2; done
    sleep 1
    after=$(resident "$2")
    exec 8>&-
    wait "$holder"
    echo "$3: $idle idle mTLS connections cost $(((after - before) / 1024)) MiB, $(((after - before) * 1024 / idle)) bytes each"
}
hold "$port" "$nginx_pid" nginx
hold "${gateway##*:}" "$supervisor" postern
