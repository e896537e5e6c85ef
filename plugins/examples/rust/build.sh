#!/usr/bin/env bash
# Builds policy.wasm; needs Rust. POSTERN names the program if it is not in the path.
#   build.sh [wasm32-unknown-unknown | wasm32-wasip2]
set -euo pipefail
cd "$(dirname "$0")"

target=${1:-wasm32-unknown-unknown}
[ -d "$("${RUSTC:-rustc}" --print target-libdir --target "$target")" ] || rustup target add "$target"
# A small stack keeps the memory small that is wiped after every call.
export RUSTFLAGS="-Clink-arg=-zstack-size=65536"
cargo build --quiet --locked --release --target "$target" --target-dir build
"${POSTERN:-postern}" plugin pack "build/$target/release/policy.wasm" --manifest manifest.yaml -o policy.wasm
