#!/usr/bin/env bash
# Builds policy.wasm; needs Python 3 with venv and pip, for the compiler in the package ziglang. POSTERN names the program if it is
# not in the path.
set -euo pipefail
cd "$(dirname "$0")"

venv=${VENV:-build/venv}
"$venv/bin/python" -c 'import ziglang' 2>/dev/null || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet ziglang==0.17.1; }
mkdir -p build
zig() { "$venv/bin/python" -m ziglang "$@"; }
target=(-target wasm32-wasi -lc)
zig translate-c "${target[@]}" ../../bindings/policy.h >build/bindings.zig
# A reactor: functions to be called, no main. Nothing here calls WASI, so nothing of it is imported.
zig build-exe "${target[@]}" -mexec-model=reactor -O ReleaseSmall --stack 65536 -I ../../bindings --dep bindings -Mroot=policy.zig \
  ../../bindings/policy.c ../../bindings/memory.c -Mbindings=build/bindings.zig -femit-bin=build/core.wasm
"${POSTERN:-postern}" plugin pack build/core.wasm --world prepared-routing-policy --manifest manifest.yaml -o policy.wasm
