#!/usr/bin/env bash
# Builds policy.wasm; needs Node.js with npm. POSTERN names the program if it is not in the path.
set -euo pipefail
cd "$(dirname "$0")"

[ -d node_modules ] || npm install --no-audit --no-fund --no-package-lock
mkdir -p build
# Without a host for them, the engine must not ask for a clock, random numbers, output or the network.
npx --no-install componentize-js policy.js --wit ../../wit --world-name prepared-routing-policy \
  --disable stdio random clocks http fetch-event --out build/component.wasm
"${POSTERN:-postern}" plugin pack build/component.wasm --manifest manifest.yaml -o policy.wasm
