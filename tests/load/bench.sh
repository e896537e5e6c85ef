#!/bin/bash
# Postern beside nginx and haproxy, all with TLS 1.3 and client certificates, in front of the same busy cloud over TLS: the same
# load on each in turn, several rounds, medians. `direct` is the cloud itself: what no proxy can beat. `postern-bare` has no
# policies, `postern` the three that come along; both write their records. With --peers also LiteLLM's proxy and Portkey's gateway.
# Modes: whole answers (plain), streams of about 20 events that come at once (stream), and the same with 20 ms between two (paced).
# The records are synced to the disk below $TMPDIR, once a request where there is one at a time: in a folder in memory, such as
# /dev/shm, what is left is the gateway. A stream's first event has no text; Postern waits for some before it answers, since until
# then it can ask another target: so first texts are compared.
#
# Usage: bench.sh [--seconds S] [--warmup S] [--rounds N] [--connections "1 32 256"] [--modes "plain stream"] [--stream] [--peers]
#                 [--without-postern] [--sync] [--keep]
# With --sync: what it costs when records are durable (`audit.sync`: each, interval), beside the cloud itself.
# Programs are taken from $POSTERN_RELEASE (default: target/release beside this folder); the peers are made below target/peers.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
release=${POSTERN_RELEASE:-$here/../../target/release}
built=$here/../../target/peers
seconds=2 warmup=0.75 rounds=3 connections="1 32 256" modes="plain stream" with_peers=0 with_postern=1 with_sync=0
# shellcheck source=tests/load/servers.sh
source "$here/servers.sh"
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --warmup) warmup=$2; shift 2 ;;
        --rounds) rounds=$2; shift 2 ;;
        --connections) connections=$2; shift 2 ;;
        --modes) modes=$2; shift 2 ;;
        --stream) modes=stream; shift ;;
        --peers) with_peers=1; shift ;;
        --without-postern) with_postern=0; shift ;;
        --sync) with_sync=1; shift ;;
        --keep) keep=1; shift ;;
        *) sed -n '2,13p' "$0" >&2; exit 2 ;;
    esac
done
for mode in $modes; do
    [[ $mode =~ ^(plain|stream|paced)$ ]] || { echo "no such mode: $mode" >&2; exit 2; }
done

programs=(busy-cloud postern-load)
((with_postern)) && programs+=(postern)
for name in "${programs[@]}"; do
    [[ -x $release/$name ]] || { echo "$release/$name is missing: cargo build --release" >&2; exit 1; }
done
nginx=$(program nginx nginx-light)
raise_files

key=sk-bench-0123456789
cp "$here/request.json" "$dir/plain.json"
python3 - "$here/request.json" "$dir/stream.json" <<'PYTHON'
import json, sys
request = json.load(open(sys.argv[1]))
json.dump(request | {"stream": True}, open(sys.argv[2], "w"))
PYTHON
cp "$dir/stream.json" "$dir/paced.json"

servers=()
left_out=()
declare -A pid_of url_of
# The process that was started last answers as $1 at $2.
serves() {
    started+=("$!")
    pid_of[$1]=$!
    url_of[$1]=$2
    servers+=("$1")
}
leave_out() {
    echo "$1 is left out: $2" >&2
    left_out+=("$1 ($2)")
}
fill_in() {
    sed -e "s|@DIR@|$dir|g; s|@PKI@|$pki|g; s|@PORT@|$port|g; s|@CLOUD@|$authority|g; s|@KEY@|$key|g; s|@BASE_URL@|$base_url|g" "$1"
}

# Pieces of 24 characters, so that a streamed answer is about 20 events.
switches='{"chunk_chars": 24}'
"$release/busy-cloud" --out "$dir/pki" --parent-death --switches "$switches" >"$dir/cloud.out" 2>"$dir/cloud.err" &
await "$dir/cloud.out" base_url $!
base_url=$(field "$dir/cloud.out" base_url)
control=$(field "$dir/cloud.out" control)
authority=${base_url#https://} authority=${authority%/v1}
pki=$dir/pki
serves direct "$base_url"

if ((! with_sync)); then
    port=$(free_port)
    fill_in "$here/nginx.conf" >"$dir/nginx.conf"
    "$nginx" -p "$dir" -c "$dir/nginx.conf" >"$dir/nginx.out" 2>"$dir/nginx.err" &
    serves nginx "https://127.0.0.1:$port/v1"
    await_port "$port" "${pid_of[nginx]}" || { cat "$dir/nginx.err" "$dir/error.log" >&2; exit 1; }

    if haproxy=$(program haproxy haproxy); then
        port=$(free_port)
        fill_in "$here/haproxy.cfg" >"$dir/haproxy.cfg"
        cat "$pki/server-cert.pem" "$pki/server-key.pem" >"$dir/haproxy.pem"
        "$haproxy" -db -f "$dir/haproxy.cfg" >"$dir/haproxy.out" 2>"$dir/haproxy.err" &
        serves haproxy "https://127.0.0.1:$port/v1"
        await_port "$port" "${pid_of[haproxy]}" || { cat "$dir/haproxy.err" >&2; exit 1; }
    else
        leave_out haproxy "its package cannot be installed"
    fi
fi

# Starts a gateway of that name with the configuration from the standard input.
start_postern() {
    mkdir "$dir/$1"
    local pid
    sed -e "s|@DIR@|$dir/$1|g; s|@PKI@|$pki|g; s|@BASE_URL@|$base_url|g" >"$dir/$1/postern.yaml"
    # The first start compiles the policies. What the compiler needed, a gateway holds until it is started again, as most are.
    BENCH_KEY=$key "$release/postern" run --config "$dir/$1/postern.yaml" >"$dir/$1.out" 2>"$dir/$1.err" &
    pid=$!
    await "$dir/$1.out" '^postern ready' "$pid"
    kill "$pid"
    wait "$pid" || true
    BENCH_KEY=$key "$release/postern" run --config "$dir/$1/postern.yaml" >"$dir/$1.out" 2>"$dir/$1.err" &
    pid=$!
    serves "$1" ""
    await "$dir/$1.out" '^postern ready' "$pid"
    url_of[$1]=https://$(sed -n 's/^postern ready gateway=\([^ ]*\).*/\1/p' "$dir/$1.out" | head -1)/v1
    "$release/postern" certs issue --config "$dir/$1/postern.yaml" --id spiffe://bench.test/clerk/load --out "$dir/$1/clerk" >&2
}
if ((with_sync)); then
    for sync in each interval; do
        start_postern "postern-$sync" < <(sed '/^policies:/,$d' "$here/postern.yaml"; echo "audit: {sync: $sync}")
    done
elif ((with_postern)); then
    start_postern postern-bare < <(sed '/^policies:/,$d' "$here/postern.yaml")
    start_postern postern <"$here/postern.yaml"
fi

# Puts load on $1, with $2 connections for $3 s, of the mode $4, and prints one line of JSON.
load() {
    local ca=$pki/ca.pem cert=$pki/client-cert.pem private=$pki/client-key.pem more=()
    case $1 in
        postern*) ca=$dir/$1/clerk/ca.pem cert=$dir/$1/clerk/cert.pem private=$dir/$1/clerk/key.pem ;;
        portkey) more=(--header "x-portkey-provider: openai" --header "x-portkey-custom-host: $base_url") ;;
    esac
    [[ $4 == plain ]] || more+=(--stream)
    # Only the cloud itself and LiteLLM need the key from the client.
    RUST_BACKTRACE=0 "$release/postern-load" --url "${url_of[$1]}/chat/completions" --ca "$ca" --cert "$cert" --key "$private" \
        --body "$dir/$4.json" --header "Authorization: Bearer $key" --connections "$2" --seconds "$3" --warmup "$warmup" --json \
        "${more[@]}"
}

# Waits for an answer of the peer $1; takes it out again if none comes.
await_answer() {
    local i
    for ((i = 0; i < 60; i++)); do
        load "$1" 1 1 plain >"$dir/$1.first" 2>/dev/null && return
        kill -0 "${pid_of[$1]}" 2>/dev/null || break
        sleep 1
    done
    tail -5 "$dir/$1.err" >&2
    cat "$dir/$1.first" >&2
    unset "servers[-1]"
    leave_out "$1" "it does not answer"
}

# Under uvicorn, as its own command does it; but that has no option for client certificates. One worker for each processor.
start_litellm() {
    venv "$built/litellm" "$here/peers/litellm.txt" || { leave_out litellm "pip cannot install it"; return; }
    port=$(free_port)
    fill_in "$here/peers/litellm.yaml" >"$dir/litellm.yaml"
    # Its list of prices comes from the package, not from the internet.
    env CONFIG_FILE_PATH="$dir/litellm.yaml" SSL_CERT_FILE="$pki/ca.pem" LITELLM_MODE=PRODUCTION LITELLM_LOG=ERROR \
        LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_MASTER_KEY=$key \
        "$built/litellm/bin/uvicorn" litellm.proxy.proxy_server:app --host 127.0.0.1 --port "$port" --workers "$(nproc)" \
        --loop uvloop --log-level warning --no-access-log --ssl-certfile "$pki/server-cert.pem" \
        --ssl-keyfile "$pki/server-key.pem" --ssl-ca-certs "$pki/ca.pem" --ssl-cert-reqs 2 \
        >"$dir/litellm.out" 2>"$dir/litellm.err" &
    serves litellm "https://127.0.0.1:$port/v1"
    await_answer litellm
}

# One process, it knows of no more. TLS comes from Node: see tls.mjs. With the newest @hono/node-server that it allows, its streams
# are refused ("immutable"), so package.json asks for the oldest.
start_portkey() {
    if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
        leave_out portkey "there is no Node here"
        return
    fi
    local from=$here/peers/portkey to=$built/portkey
    if [[ ! -e $to/ready || $from/package-lock.json -nt $to/ready ]]; then
        mkdir -p "$to"
        cp "$from/package.json" "$from/package-lock.json" "$to/"
        if ! (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2 && touch ready); then
            leave_out portkey "npm cannot install it"
            return
        fi
    fi
    port=$(free_port)
    env NODE_ENV=production NODE_EXTRA_CA_CERTS="$pki/ca.pem" TRUSTED_CUSTOM_HOSTS=127.0.0.1 BENCH_PKI="$pki" \
        node --import "$from/tls.mjs" "$to/node_modules/@portkey-ai/gateway/build/start-server.js" --headless "--port=$port" \
        >"$dir/portkey.out" 2>"$dir/portkey.err" &
    serves portkey "https://127.0.0.1:$port/v1"
    await_answer portkey
}
if ((with_peers)); then
    start_litellm
    start_portkey
fi

switch() {
    python3 - "$control/switches" "$1" <<'PYTHON'
import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], sys.argv[2].encode(), method="PUT"), timeout=10)
PYTHON
}
# For how long $1 gets $2 connections: where an answer takes 10 s, as LiteLLM's do at 256, there would be none in 2.
span() {
    case $1 in
        litellm | portkey) awk "BEGIN {least = $2 / 12; print (least > $seconds ? least : $seconds)}" ;;
        *) echo "$seconds" ;;
    esac
}
for ((round = 1; round <= rounds; round++)); do
    for mode in $modes; do
        [[ $mode == paced ]] && switch '{"chunk_chars": 24, "token_ms": 20}'
        for count in $connections; do
            for server in "${servers[@]}"; do
                echo "round $round of $rounds: $mode, $count connections, $server" >&2
                pid=${pid_of[$server]} span=$(span "$server" "$count")
                # Memory is looked at while the load is on, once, near its end.
                late=$(awk "BEGIN {print $warmup + 0.75 * $span}")
                before=$(cpu_ms "$pid")
                (trap - EXIT; sleep "$late"; memory_kib "$pid" >"$dir/memory") &
                looking=$!
                # It fails if nobody got an answer, which the table shows.
                report=$(load "$server" "$count" "$span" "$mode") || true
                wait "$looking" || true
                after=$(cpu_ms "$pid")
                printf '%s\t%s\t%s\t%s\t%s\n' "$mode" "$server" $((after - before)) "$(cat "$dir/memory")" "$report" \
                    >>"$dir/results"
            done
        done
        [[ $mode == paced ]] && switch "$switches"
    done
done
ended=0
python3 "$here/table.py" "$dir/results" "$warmup" || ended=$?
for who in "${left_out[@]}"; do echo "left out: $who"; done
exit "$ended"
