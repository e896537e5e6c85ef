#!/usr/bin/env bash
# Builds policy.wasm; needs Python 3 with venv and pip. POSTERN names the program if it is not in the path.
set -euo pipefail
cd "$(dirname "$0")"

venv=${VENV:-build/venv}
[ -x "$venv/bin/componentize-py" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet -r requirements.txt; }
mkdir -p build
# Without a host for them, Python must not ask for files, a clock or the environment.
"$venv/bin/componentize-py" --wit-path ../../wit --world prepared-routing-policy \
  componentize --stub-wasi --python-path . app --output build/component.wasm
"${POSTERN:-postern}" plugin pack build/component.wasm --manifest manifest.yaml -o policy.wasm
