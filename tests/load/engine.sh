#!/bin/bash
# The engine beside candle's own quantised Llama and llama.cpp, in one run: each in turn with the same model file and as many
# threads, several rounds, medians. All three get the same tokens: a prompt of 512, then answers of 64 tokens to prompts of 8, at
# 1, 8 and 32 at a time, from asking to the end of the last. The engine does what it does for a request: it admits, draws at a
# temperature with a seed, and makes text. The other two take the likeliest token and make none. candle's own model takes one
# position for a whole batch, so it has no answers side by side; llama.cpp, as PyPI's llama-cpp-py-sync has it, decodes all
# sequences in one batch. Then what only the engine has: memory, quoting, pace, schemas, beginnings that were computed before.
#
# Usage: engine.sh [--rounds N] [--threads N] [--model FILE] [--without-peers]
# Programs are taken from $POSTERN_RELEASE (default: target/release); the peers are made below target/peers. Threads of llama.cpp
# wait by turning round: on a machine that is busy with other things it is many times slower, and a run of it is given up.
set -euo pipefail
cd "$(dirname "$0")/../.."

release=${POSTERN_RELEASE:-target/release}
model=${POSTERN_CACHE:-$HOME/.cache/postern}/models/SmolLM2-135M-Instruct.Q4_1.gguf
rounds=3 threads=2 with_peers=1
while (($#)); do
    case $1 in
        --rounds) rounds=$2; shift 2 ;;
        --threads) threads=$2; shift 2 ;;
        --model) model=$2; shift 2 ;;
        --without-peers) with_peers=0; shift ;;
        *) sed -n '2,12p' "$0" >&2; exit 2 ;;
    esac
done
[[ -e $model ]] || { echo "$model is missing: postern model pull smollm2-135m-instruct" >&2; exit 1; }

# With the whole workspace, so that nothing is compiled for a second time.
cargo build --quiet --locked --release --workspace --example speed
speed=$release/examples/speed
peers=tests/load/peers built=target/peers venv=target/peers/venv
if ((with_peers)); then
    echo "building candle's own model (the first time takes a few minutes)" >&2
    # From here cargo reads the workspace's .cargo/config.toml: the same instructions of the processor.
    cargo build --quiet --locked --release --manifest-path $peers/candle/Cargo.toml --target-dir $built/candle
    if [[ ! -e $venv/ready || $peers/requirements.txt -nt $venv/ready ]]; then
        echo "fetching llama.cpp" >&2
        python3 -m venv $venv
        $venv/bin/pip install --quiet --disable-pip-version-check -r $peers/requirements.txt
        package=("$venv"/lib/python3*/site-packages/llama_cpp_py_sync)
        preloaded=
        libc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
        if [[ $(printf '2.38\n%s\n' "$libc" | sort -V | head -1) != 2.38 ]]; then
            preloaded=$(realpath "$(python3 $peers/older_libc.py "${package[0]}")")
        fi
        echo "$preloaded" >$venv/ready
    fi
fi

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
measure() {
    local environment=(CANDLE_NUM_THREADS="$threads" RAYON_NUM_THREADS="$threads")
    case $1 in
        engine) "$speed" --model "$model" --threads "$threads" --rounds 1 --what streams ;;
        candle) env "${environment[@]}" timeout 60 $built/candle/release/stock-candle "$model" ;;
        llama.cpp) LD_PRELOAD=$(cat $venv/ready) timeout 60 $venv/bin/python $peers/llama_cpp.py "$model" "$threads" ;;
    esac
}
contenders=(engine)
((with_peers)) && contenders+=(llama.cpp candle)
for ((round = 1; round <= rounds; round++)); do
    for name in "${contenders[@]}"; do
        echo "round $round of $rounds: $name" >&2
        ended=0
        report=$(measure "$name" 2>"$dir/errors") || ended=$?
        if ((ended == 124)); then
            echo "$name was given up after a minute: the machine is busy" >&2
        elif ((ended)); then
            cat "$dir/errors" >&2
            exit "$ended"
        else
            printf '%s\t%s\n' "$name" "$report" >>"$dir/results"
        fi
    done
done
echo "what only the engine has" >&2
printf 'alone\t%s\n' "$("$speed" --model "$model" --threads "$threads" --what memory,quote,pace,grammar,prefix)" >>"$dir/results"
python3 tests/load/engine_table.py "$dir/results" "$threads"
