#!/usr/bin/env bash
# Builds policy.wasm; needs Python 3 with venv and pip, for the C compiler in the package ziglang. POSTERN names the program if it
# is not in the path.
set -euo pipefail
cd "$(dirname "$0")"

[ -d build/venv ] || { python3 -m venv build/venv && build/venv/bin/pip install --quiet ziglang==0.17.1; }
# A reactor: functions to be called, no main. Nothing here calls WASI, so nothing of it is imported.
build/venv/bin/python -m ziglang cc -target wasm32-wasi -mexec-model=reactor -Os -Wall -Wextra -Wl,-z,stack-size=65536 -I ../../bindings \
  policy.c ../../bindings/policy.c -o build/core.wasm
"${POSTERN:-postern}" plugin pack build/core.wasm --world prepared-routing-policy --manifest manifest.yaml -o policy.wasm
