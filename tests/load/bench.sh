#!/bin/bash
# Postern beside nginx, both with TLS 1.3 and client certificates, in front of the same busy cloud: the same load on each in
# turn, several rounds, medians. `direct` is the cloud itself: what no proxy can beat.
#
# Usage: bench.sh [--seconds S] [--rounds N] [--connections "1 32"] [--stream] [--without-postern] [--keep]
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
seconds=5 warmup=1 rounds=3 connections="1 32" stream=() with_postern=1 keep=0
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --connections) connections=$2; shift 2 ;;
        --stream) stream=(--stream); shift ;;
        --without-postern) with_postern=0; shift ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,7p' "$0" >&2; exit 2 ;;
    esac
done

programs=(busy-cloud postern-load)
((with_postern)) && programs+=(postern)
for program in "${programs[@]}"; do
    [[ -x $release/$program ]] || { echo "$release/$program is missing: cargo build --release" >&2; exit 1; }
done
if ! command -v nginx >/dev/null && [[ ! -x /usr/sbin/nginx ]]; then
    echo "installing nginx (package nginx-light)" >&2
    sudo=()
    ((EUID == 0)) || sudo=(sudo)
    # Only the program is wanted: the package must not start a service. Many images forbid that already.
    policy=/usr/sbin/policy-rc.d made=0
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod +x "$policy"
        made=1
    fi
    installed=0
    "${sudo[@]}" apt-get install -y --no-install-recommends nginx-light >&2 || installed=$?
    if ((made)); then "${sudo[@]}" rm -f "$policy"; fi
    ((installed == 0)) || exit "$installed"
fi
nginx=$(command -v nginx || echo /usr/sbin/nginx)

dir=$(mktemp -d)
started=()
finish() {
    local pid
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    if ((keep)); then echo "kept: $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT

# Waits until the file $1 has a line with $2, for at most 60 s, while the process $3 lives.
await() {
    local i
    for ((i = 0; i < 600; i++)); do
        grep -q "$2" "$1" 2>/dev/null && return
        kill -0 "$3" 2>/dev/null || break
        sleep 0.1
    done
    echo "not ready: $1" >&2
    cat "$1" "${1%.out}.err" >&2 2>/dev/null || true
    exit 1
}
field() { python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())[sys.argv[2]])' "$1" "$2"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

key=sk-bench-0123456789
body=$here/request.json
if ((${#stream[@]})); then
    body=$dir/request.json
    python3 - "$here/request.json" "$body" <<'PYTHON'
import json, sys
request = json.load(open(sys.argv[1]))
json.dump(request | {"stream": True}, open(sys.argv[2], "w"))
PYTHON
fi

# Pieces of 24 characters, so that a streamed answer is about 20 events.
"$release/busy-cloud" --out "$dir/pki" --parent-death --switches '{"chunk_chars": 24}' >"$dir/cloud.out" 2>"$dir/cloud.err" &
cloud_pid=$!
started+=("$cloud_pid")
await "$dir/cloud.out" base_url "$cloud_pid"
base_url=$(field "$dir/cloud.out" base_url)
pki=$dir/pki

port=$(free_port)
authority=${base_url#https://}
sed -e "s|@DIR@|$dir|g; s|@PKI@|$pki|g; s|@PORT@|$port|g; s|@CLOUD@|${authority%/v1}|g; s|@KEY@|$key|g" \
    "$here/nginx.conf" >"$dir/nginx.conf"
"$nginx" -p "$dir" -c "$dir/nginx.conf" >"$dir/nginx.out" 2>"$dir/nginx.err" &
nginx_pid=$!
started+=("$nginx_pid")
for ((i = 0; i < 100; i++)); do (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break; sleep 0.1; done
kill -0 "$nginx_pid" || { cat "$dir/nginx.err" "$dir/error.log" >&2; exit 1; }

if ((with_postern)); then
    sed -e "s|@DIR@|$dir|g; s|@PKI@|$pki|g; s|@BASE_URL@|$base_url|g" "$here/postern.yaml" >"$dir/postern.yaml"
    BENCH_KEY=$key "$release/postern" run --config "$dir/postern.yaml" >"$dir/postern.out" 2>"$dir/postern.err" &
    postern_pid=$!
    started+=("$postern_pid")
    await "$dir/postern.out" '^postern ready' "$postern_pid"
    gateway=$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/postern.out" | head -1)
    "$release/postern" certs issue --config "$dir/postern.yaml" --id spiffe://bench.test/clerk/load --out "$dir/clerk" >&2
fi

# Runs the load on $1 with $2 connections and prints one line of JSON.
load() {
    local url ca=$pki/ca.pem cert=$pki/client-cert.pem private=$pki/client-key.pem
    case $1 in
        direct) url=$base_url ;;
        nginx) url=https://127.0.0.1:$port/v1 ;;
        postern) url=https://$gateway/v1 ca=$dir/clerk/ca.pem cert=$dir/clerk/cert.pem private=$dir/clerk/key.pem ;;
    esac
    # Only the cloud itself needs the key from the client.
    "$release/postern-load" --url "$url/chat/completions" --ca "$ca" --cert "$cert" --key "$private" --body "$body" \
        --header "Authorization: Bearer $key" --connections "$2" --seconds "$seconds" --warmup "$warmup" --json "${stream[@]}"
}

# Processor time of $1 and its children so far, in ms. On a machine that others use as well it says more than the rate.
cpu_ms() {
    local pid total=0 ticks
    for pid in "$1" $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        ticks=$(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f12,13 | tr ' ' '+')
        total=$((total + ticks))
    done
    echo $((total * 1000 / $(getconf CLK_TCK)))
}

servers=(direct nginx)
declare -A pid_of=([direct]=$cloud_pid [nginx]=$nginx_pid)
if ((with_postern)); then
    servers+=(postern)
    pid_of[postern]=$postern_pid
fi
for ((round = 1; round <= rounds; round++)); do
    for count in $connections; do
        for server in "${servers[@]}"; do
            echo "round $round of $rounds: $server, $count connections" >&2
            before=$(cpu_ms "${pid_of[$server]}")
            report=$(load "$server" "$count")
            after=$(cpu_ms "${pid_of[$server]}")
            printf '%s\t%s\t%s\n' "$server" $((after - before)) "$report" >>"$dir/results"
        done
    done
done
python3 "$here/table.py" "$dir/results" "$warmup"
