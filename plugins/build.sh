#!/usr/bin/env bash
# Builds the first-party policies into target/plugins: routing.wasm, caching.wasm, redaction.wasm. The one that scenarios play with,
# tests/guests/puppet, comes into target/test-plugins.
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

# Panic messages name source files: without the paths of this machine, the same source and compiler give the same bytes.
remap="\"--remap-path-prefix=$repository=/postern\", \"--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo\""
# The memory of a guest is wiped after every call, in pages of 64 KiB: with a stack of half a page, routing and caching need one.
declare -A small_stack=([routing]=32768 [caching]=32768)
build_guest() { # PACKAGE STACK_BYTES
  RUSTC=$guest_rustc CARGO_TARGET_DIR=$target_dir cargo rustc --locked --profile guest --target "$target" --lib -p "$1" \
    --config "target.$target.rustflags=[$remap]" -- "-Clink-arg=-zstack-size=$2"
}
for policy in "${policies[@]}"; do build_guest "postern-policy-$policy" "${small_stack[$policy]:-65536}"; done
build_guest postern-test-puppet 65536

componentize=${POSTERN_COMPONENTIZE:-}
if [ -z "$componentize" ]; then
  # The whole workspace, so that cargo unites features as it does for the gateway, and compiles wasmtime once.
  CARGO_TARGET_DIR=$target_dir cargo build --locked --release --workspace --bin postern-componentize
  componentize=$target_dir/release/postern-componentize
fi

# An unchanged file keeps its time, so that nothing that depends on it is done again.
install_policy() { # MODULE COMPONENT [OPTION…]
  "$componentize" "$1" "$2.new" "${@:3}"
  if cmp -s "$2.new" "$2"; then
    rm "$2.new"
  else
    mv "$2.new" "$2"
  fi
  printf '%s: %s bytes\n' "${2#"$repository"/}" "$(stat -c %s "$2")"
}

mkdir -p "$out" "$repository/target/test-plugins"
for policy in "${policies[@]}"; do
  install_policy "$target_dir/$target/guest/postern_policy_$policy.wasm" "$out/$policy.wasm" --manifest "plugins/$policy/manifest.yaml"
done
install_policy "$target_dir/$target/guest/postern_test_puppet.wasm" "$repository/target/test-plugins/puppet.wasm"
