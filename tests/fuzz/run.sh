#!/usr/bin/env bash
# Gives each parser of foreign bytes to libFuzzer for a while. Needs a C++ compiler beside what a build needs; no nightly Rust.
#
# Usage: run.sh [--seconds S] [TARGET…]       (default: 60 s each, all targets)
# What was found goes to target/fuzz/TARGET/crash-…; run it again with `run.sh TARGET --input FILE`. Inputs that showed something
# new are kept in target/fuzz/TARGET/corpus and are where the next run begins.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=60 input= targets=()
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift 2 ;;
        --input) input=$(realpath "$2"); shift 2 ;;
        -*) sed -n '2,7p' "$0" >&2; exit 2 ;;
        *) targets+=("$1"); shift ;;
    esac
done
command -v c++ >/dev/null || { echo "libFuzzer is C++: install a C++ compiler (Debian, Ubuntu: g++)" >&2; exit 1; }

# Only the workspace's own crates count branches: cargo keeps what this wrapper compiles apart, and takes the dependencies as
# they were built for everything else.
echo "== building the targets"
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh \
    cargo build --locked --release --workspace --bin postern-fuzz --features postern-fuzz/libfuzzer
program=$PWD/target/release/postern-fuzz

((${#targets[@]})) || mapfile -t targets < <(sed -n 's/^ *Target { name: "\([^"]*\)".*/\1/p' tests/fuzz/src/lib.rs)
# Files of targets are short-lived: in memory, where there is such a place.
scratch=$(mktemp -d -p "$([[ -d /dev/shm ]] && echo /dev/shm || echo /tmp)")
trap 'rm -rf "$scratch"' EXIT
export TMPDIR=$scratch
failed=()
for target in "${targets[@]}"; do
    folder=$PWD/target/fuzz/$target
    mkdir -p "$folder/corpus"
    export POSTERN_FUZZ_TARGET=$target
    if [[ $input ]]; then
        "$program" "$input"
        continue
    fi
    echo "== $target, $seconds s"
    if (cd "$folder" && POSTERN_FUZZ_CORPUS=$folder/corpus "$program" corpus -max_total_time="$seconds" -timeout=10 \
        -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$folder/" >log 2>&1); then
        sed -n 's/^stat::\(number_of_executed_units\|average_exec_per_sec\|new_units_added\)/  \1/p' "$folder/log"
    else
        failed+=("$target")
        tail -n 40 "$folder/log"
    fi
done
((${#failed[@]} == 0)) || { echo "== failed: ${failed[*]}" >&2; exit 1; }
