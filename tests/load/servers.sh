# shellcheck shell=bash
# For scripts that measure: programs that are missing, servers that are started and ended, what those cost. To be sourced, after
# which $dir is a scratch folder that goes away at the end, with all that was started.

dir=$(mktemp -d)
keep=0
started=()
finish() {
    local pid i all=
    for pid in "${started[@]}"; do
        # Its workers as well: one that is killed leaves them behind.
        all+=" $(family "$pid")"
        kill "$pid" 2>/dev/null || true
    done
    # shellcheck disable=SC2086 # It is a list.
    for ((i = 0; i < 100; i++)); do living $all || break; sleep 0.1; done
    for pid in $all; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    if ((keep)); then echo "kept: $dir" >&2; else rm -rf "$dir"; fi
}
trap finish EXIT
trap 'exit 1' INT TERM

# Is one of these still running? One that has ended and was not waited for is not.
living() {
    local pid state
    for pid; do
        state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null)
        [[ $state && $state != Z ]] && return
    done
    return 1
}

# $1 and everything below it, one process a line.
family() {
    local child children
    [[ -d /proc/$1 ]] || return 0
    echo "$1"
    children=$(cat "/proc/$1"/task/*/children 2>/dev/null) || true
    for child in $children; do family "$child"; done
}

# Processor time of $1 and everything below it so far, in ms. On a machine that others use as well it says more than the rate.
cpu_ms() {
    local pid total=0 ticks
    for pid in $(family "$1"); do
        ticks=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -d' ' -f12,13 | tr ' ' '+')
        total=$((total + ${ticks:-0}))
    done
    echo $((total * 1000 / $(getconf CLK_TCK)))
}

# Resident memory of $1 and everything below it, in KiB. What processes share is counted once: of memory of their own each counts
# its part, of programs and libraries that of whichever has the most. (Pss would count less of these if others run them as well.)
memory_kib() {
    local pid total=0 files=0 own mapped
    for pid in $(family "$1"); do
        own=$(awk '/^Pss_(Anon|Shmem):/ {sum += $2} END {print sum}' "/proc/$pid/smaps_rollup" 2>/dev/null) || own=
        # A kernel that does not say, or somebody else's process.
        [[ $own ]] || own=$(awk '/^Rss(Anon|Shmem):/ {sum += $2} END {print sum}' "/proc/$pid/status" 2>/dev/null) || own=
        mapped=$(awk '/^RssFile:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || mapped=
        total=$((total + ${own:-0}))
        ((files >= ${mapped:-0})) || files=$mapped
    done
    echo $((total + files))
}

# As many files as the machine's hard limit allows, here and in what is started from here.
raise_files() { ulimit -n "$(ulimit -Hn)"; }

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
    return 1
}

# Waits until the port $1 takes connections, for at most $3 s (10), while the process $2 lives.
await_port() {
    local i
    for ((i = 0; i < ${3:-10} * 10; i++)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

field() { python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())[sys.argv[2]])' "$1" "$2"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Where the program $1 is; installs the package $2 if it is nowhere.
program() {
    local path sudo=() policy=/usr/sbin/policy-rc.d made=0 ended=0
    path=$(command -v "$1" || { [[ -x /usr/sbin/$1 ]] && echo "/usr/sbin/$1"; }) && { echo "$path"; return; }
    echo "installing $1 (package $2)" >&2
    ((EUID == 0)) || sudo=(sudo)
    # Only the program is wanted: the package must not start a service. Many images forbid that already.
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod +x "$policy"
        made=1
    fi
    "${sudo[@]}" apt-get install -y --no-install-recommends "$2" >&2 || ended=$?
    if ((made)); then "${sudo[@]}" rm -f "$policy"; fi
    ((ended == 0)) || return "$ended"
    command -v "$1" || echo "/usr/sbin/$1"
}

# A folder with Python packages: venv FOLDER REQUIREMENTS.
venv() {
    [[ -e $1/ready && ! $2 -nt $1/ready ]] && return
    python3 -m venv "$1" && "$1/bin/pip" install --quiet --disable-pip-version-check -r "$2" >&2 && touch "$1/ready"
}
