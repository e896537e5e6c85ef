#!/usr/bin/env bash
# Writes policy.h and policy.c anew after a change of plugins/wit: what C and Zig need to be a routing policy. A test of
# plugins/host sees whether that was forgotten. For another world, run the last line by hand with its name.
set -euo pipefail
cd "$(dirname "$0")"

version=0.61.1
tools=../../target/tools
[ "$("$tools/bin/wit-bindgen" --version 2>/dev/null)" = "wit-bindgen-cli $version" ] ||
  CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" --no-default-features --features c "wit-bindgen-cli@$version"

# Types and world come from `postern plugin pack`, so there is no object file, and nothing to make sure that it is linked.
"$tools/bin/wit-bindgen" c --no-object-file --rename-world policy --world prepared-routing-policy --out-dir . ../wit
sed -i '/^\/\/ Ensure that the .* object is linked in$/,$d' policy.c
cat ../wit/{types,imports,exports,worlds}.wit | sha256sum | cut -d' ' -f1 >wit.sha256
