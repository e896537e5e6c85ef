#!/bin/bash
# Builds what a release ships, into target/dist: optimised across crates, and for what a gateway does most (profile-guided
# optimisation: https://doc.rust-lang.org/rustc/profile-guided-optimization.html). So it is built twice: first with counters, to be
# put under the load of the benchmark, then with what was counted. Code that was seldom run is kept apart from the rest, so that
# what a request needs is in fewer pages of memory. Nothing that is counted depends on data: it says how often which code ran.
#
# Usage: dist.sh [--plain]
#   --plain   without that: one build. So it is, too, where there is no llvm-profdata of LLVM 19 or newer and none can be installed.
# What was counted is kept in target/trained for the next builds, which may be of other code; remove the folder to count anew. With
# another compiler, or other settings for it, functions have other names and the counts are nobody's: so it is counted anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
trained=$PWD/target/trained out=$PWD/target/dist plain=0
case ${1:-} in
    '') ;;
    --plain) plain=1 ;;
    *) sed -n '2,10p' "$0" >&2; exit 2 ;;
esac
programs=(postern busy-cloud postern-load)
host=$(rustc -vV | sed -n 's/^host: //p')

# The newest one there is, with its version.
newest() {
    local tool version
    for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" llvm-profdata /usr/lib/llvm-*/bin/llvm-profdata; do
        version=$("$tool" merge --version 2>/dev/null | sed -n 's/.*LLVM version \([0-9]*\).*/\1/p') || true
        [[ $version ]] && echo "$version $tool"
    done | sort -rn | head -1
}
# Prints where it is.
profdata() {
    local version tool sudo=()
    read -r version tool < <(newest) || true
    if ((${version:-0} < 19)) && command -v apt-get >/dev/null; then
        echo "== installing llvm-19" >&2
        ((EUID == 0)) || sudo=(sudo)
        "${sudo[@]}" apt-get update -qq >&2 || true
        "${sudo[@]}" apt-get install -y -qq --no-install-recommends llvm-19 >&2 || true
        read -r version tool < <(newest) || true
    fi
    ((${version:-0} >= 19)) && echo "$tool"
}

# Builds into the folder $1, with the flag $2 for what is compiled beside those of .cargo/config.toml. With a target named, programs
# that only run during the build are compiled without it.
build() {
    local options=(--locked --profile dist --workspace --target "$host" --target-dir "$1") program
    for program in "${programs[@]}"; do options+=(--bin "$program"); done
    if [[ -z $2 ]]; then
        cargo build "${options[@]}"
    elif [[ ${RUSTFLAGS:-} ]]; then
        RUSTFLAGS="$RUSTFLAGS $2" cargo build "${options[@]}"
    else
        cargo build "${options[@]}" --config "target.$host.rustflags=[\"$2\"]"
    fi
}

# What the names of functions depend on.
names_of() {
    { rustc -vV; echo "${RUSTFLAGS:-}"; sed -n '/^\[profile\./,$p' Cargo.toml; cat .cargo/config.toml; } | sha256sum
}

train() {
    local counts=$trained/counts tool=$1
    echo "== building with counters"
    build "$trained/build" "-Cprofile-generate=$trained/stray"
    echo "== counting"
    rm -rf "$counts" "$trained/stray"
    # Each process writes what it counted when it ends.
    export LLVM_PROFILE_FILE=$counts/%p.profraw POSTERN_RELEASE=$trained/build/$host/dist POSTERN_PLUGINS=$PWD/target/plugins
    tests/load/bench.sh --seconds 3 --rounds 1 --connections "1 32" --modes "plain stream"
    tests/load/added.sh --seconds 1 --rounds 1
    tests/load/sealed.sh --seconds 1 --rounds 1 --through
    unset LLVM_PROFILE_FILE POSTERN_RELEASE POSTERN_PLUGINS
    # Whoever was killed has written nothing.
    find "$counts" -size 0 -delete
    # Not of the engine, which had nothing to do: it is to be compiled as ever, not as what is never used.
    "$tool" merge --no-function='postern_engine|candle|gemm|rayon|tokenizers|llguidance|derivre|toktrie|half' \
        --output="$trained/counts.profdata" "$counts"
    names_of >"$trained/names"
}

flag=
if ((! plain)) && tool=$(profdata); then
    if [[ ! -e $trained/counts.profdata ]] || ! cmp -s <(names_of) "$trained/names"; then train "$tool"; fi
    # Code that has changed since has no counts, and is compiled as without them.
    flag="-Cprofile-use=$trained/counts.profdata"
elif ((! plain)); then
    echo "without llvm-profdata of LLVM 19 or newer it is built as with --plain" >&2
fi
echo "== building what ships"
build "$PWD/target" "$flag"
mkdir -p "$out"
for program in "${programs[@]}"; do install "target/$host/dist/$program" "$out/$program"; done
