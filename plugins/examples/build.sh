#!/usr/bin/env bash
# Builds example policies into target/examples: rust.wasm, rust-wasip2.wasm, js.wasm, python.wasm, c.wasm, zig.wasm.
#
#   usage: plugins/examples/build.sh [rust] [rust-wasip2] [js] [python] [c] [zig]     all of them if none is named
#   POSTERN    the program to pack them with; target/release/postern
#
# Each is built in a folder such as `postern plugin new` writes: its own files, the interface, and what it needs of SDK and
# bindings. What has not changed is not built again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
repository=$PWD
out=$repository/target/examples
export POSTERN=${POSTERN:-$repository/target/release/postern}
# One for all that come from Python's registry.
export VENV=$out/venv
languages=("$@")
[ ${#languages[@]} -gt 0 ] || languages=(rust rust-wasip2 js python c zig)

parts() {
  case $1 in
    rust*) echo wit sdk ;;
    c | zig) echo wit bindings ;;
    *) echo wit ;;
  esac
}

digest() {
  local language=$1
  (cd plugins && for part in "examples/${language%-wasip2}" $(parts "$language"); do
    git ls-files -z --cached --others --exclude-standard "$part"
  done | xargs -0 sha256sum; sha256sum examples/build.sh) | sha256sum
}

# `../../` is the way from an example to the rest of the repository; in a project of its own, that lies inside of it.
lay_out() {
  local language=$1 project=$2 part
  mkdir -p "$project"
  (cd "plugins/examples/${language%-wasip2}" && git ls-files -z --cached --others --exclude-standard . |
    xargs -0 cp --parents --preserve=timestamps -t "$project")
  find "$project" -maxdepth 2 -type f -not -path '*/node_modules/*' -not -path '*/build/*' -not -name '*.wasm' \
    -exec sed -i 's|\.\./\.\./||g' {} +
  for part in $(parts "$language"); do
    rm -rf "${project:?}/$part"
    cp -a "plugins/$part" "$project/$part"
  done
}

for language in "${languages[@]}"; do
  project=$out/projects/${language%-wasip2}
  stamp=$(digest "$language")
  if [ -f "$out/$language.wasm" ] && [ "$(cat "$out/$language.stamp" 2>/dev/null)" = "$stamp" ]; then
    continue
  fi
  echo "== building the example in $language"
  lay_out "$language" "$project"
  case $language in
    # The compiler of the repository's own guests knows the target, also where rustup does not reach its server.
    rust) RUSTC=$(plugins/guest-toolchain.sh) "$project/build.sh" ;;
    rust-wasip2)
      "$project/build.sh" wasm32-wasip2 || { echo "not built: is there a toolchain for wasm32-wasip2?" && continue; }
      ;;
    *) "$project/build.sh" ;;
  esac
  mv "$project/policy.wasm" "$out/$language.wasm"
  printf '%s\n' "$stamp" >"$out/$language.stamp"
  printf '%s: %s bytes\n' "target/examples/$language.wasm" "$(stat -c %s "$out/$language.wasm")"
done
