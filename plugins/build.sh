#!/usr/bin/env bash
# Builds the first-party policies into target/plugins: routing.wasm, caching.wasm, redaction.wasm.
#
#   CARGO_TARGET_DIR        where cargo builds; the results are in target/plugins in any case
#   POSTERN_COMPONENTIZE    a postern-componentize that is built already
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
repository=$PWD
policies=(routing caching redaction)
target=wasm32-unknown-unknown
target_dir=${CARGO_TARGET_DIR:-$repository/target}
out=$repository/target/plugins

guest_rustc=$(plugins/guest-toolchain.sh)

packages=()
for policy in "${policies[@]}"; do packages+=(-p "postern-policy-$policy"); done
# A small stack keeps the memory of a guest small, which is wiped after every call.
stack="\"-Clink-arg=-zstack-size=65536\""
# Panic messages name source files: without the paths of this machine, the same source and compiler give the same bytes.
remap="\"--remap-path-prefix=$repository=/postern\", \"--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo\""
RUSTC=$guest_rustc CARGO_TARGET_DIR=$target_dir cargo build --locked --profile guest --target "$target" --lib "${packages[@]}" \
  --config "target.$target.rustflags=[$stack, $remap]"

componentize=${POSTERN_COMPONENTIZE:-}
if [ -z "$componentize" ]; then
  # The whole workspace, so that cargo unites features as it does for the gateway, and compiles wasmtime once.
  CARGO_TARGET_DIR=$target_dir cargo build --locked --release --workspace --bin postern-componentize
  componentize=$target_dir/release/postern-componentize
fi

mkdir -p "$out"
for policy in "${policies[@]}"; do
  module=$target_dir/$target/guest/postern_policy_$policy.wasm
  "$componentize" "$module" "$out/$policy.wasm.new" --manifest "plugins/$policy/manifest.yaml"
  # An unchanged file keeps its time, so that nothing that depends on it is done again.
  if cmp -s "$out/$policy.wasm.new" "$out/$policy.wasm"; then
    rm "$out/$policy.wasm.new"
  else
    mv "$out/$policy.wasm.new" "$out/$policy.wasm"
  fi
  printf '%s: %s bytes\n' "target/plugins/$policy.wasm" "$(stat -c %s "$out/$policy.wasm")"
done
