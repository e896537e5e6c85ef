#!/usr/bin/env bash
# Makes sure that something on this machine can compile Rust to wasm32-unknown-unknown, which guests are built for.
#
#   usage: guest-toolchain.sh            prints the rustc to build guests with
#
# 1. The pinned toolchain has the target already: nothing to do.
# 2. `rustup target add`.
# 3. Where rustup cannot reach its server (or POSTERN_GUEST_TOOLCHAIN=debian asks for it): Debian's rustc for the web, with
#    std built from Debian's source package, unpacked into ~/.cache/postern/wasm-toolchain. Nothing is installed on the
#    system. It takes some 140 MB of downloads, three CPU-minutes and 600 MB of disk, once.
set -euo pipefail

target=wasm32-unknown-unknown
recipe=1 # raise when the recipe below changes, so that older results are built anew
cache=${POSTERN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/postern}
folder=$cache/wasm-toolchain
add_timeout_s=180

say() { printf 'guest toolchain: %s\n' "$*" >&2; }

has_target() { [ -d "$("$1" --print target-libdir --target "$target" 2>/dev/null)" ]; }

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.." # rustup reads the pin of the repository
  local pinned
  pinned=$(rustc --print sysroot)
  if [ "${POSTERN_GUEST_TOOLCHAIN:-}" != debian ]; then
    if has_target "$pinned/bin/rustc"; then
      echo "$pinned/bin/rustc"
      return
    fi
    # Once made, the other one is used: where rustup's server does not answer, each attempt to reach it takes a while.
    if is_complete "$pinned"; then
      echo "$folder/rustc"
      return
    fi
    if add_target; then
      echo "$pinned/bin/rustc"
      return
    fi
    say "rustup cannot add $target; using Debian's rustc instead"
  fi
  mkdir -p "$cache"
  exec 9>"$cache/wasm-toolchain.lock"
  flock 9 # two builds at once: the second waits for the first
  is_complete "$pinned" || build "$pinned"
  echo "$folder/rustc"
}

add_target() {
  command -v rustup >/dev/null || return 1
  say "rustup target add $target"
  RUST_BACKTRACE=0 RUSTUP_MAX_RETRIES=1 timeout "$add_timeout_s" rustup target add "$target" >&2 || return 1
  has_target "$(rustc --print sysroot)/bin/rustc"
}

# The linker is borrowed from the pinned toolchain, so its place belongs to the stamp.
stamp() { printf 'recipe %s, linker of %s\n' "$recipe" "$1"; }

is_complete() { [ "$(cat "$folder/complete" 2>/dev/null)" = "$(stamp "$1")" ] && has_target "$folder/rustc"; }

build() {
  local pinned=$1 work
  # Beside the result, so that the last step is a rename; and not in /tmp, which may be small.
  work=$(mktemp -d "$cache/wasm-toolchain.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  fetch "$work"
  assemble "$work" "$pinned"
  build_std "$work" "$pinned"
  stamp "$pinned" >"$work/toolchain/complete"
  rm -rf "$folder"
  mv "$work/toolchain" "$folder"
  say "ready: $("$folder/rustc" -V)"
}

fetch() {
  local work=$1 version std llvm
  say "fetching Debian's rustc-web"
  as_root apt-get -qq update >&2 || say "apt-get update failed; going on with the package lists that are here"
  version=$(apt-cache policy rustc-web | sed -n 's/ *Candidate: //p')
  std=$(apt-cache depends libstd-rust-web-dev | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\).*/\1/p' | head -n 1)
  llvm=$(apt-cache depends "$std" | sed -n 's/.*Depends: \(libllvm[0-9]*\).*/\1/p' | head -n 1)
  if [ -z "$version" ] || [ -z "$llvm" ]; then
    say "this system has no rustc-web package (Debian 12 and later have it); install the target with rustup instead"
    return 1
  fi
  mkdir "$work/packages"
  # As root, apt would rather download as its own user, who may not write here.
  (cd "$work/packages" && apt-get download -qq -o APT::Sandbox::User=root "rustc-web=$version" \
    "$std=$version" "libstd-rust-web-dev=$version" "rust-web-src=$version" "$llvm" >&2)
  for package in "$work"/packages/*.deb; do
    case $package in
      */rust-web-src_*) dpkg --fsys-tarfile "$package" | tar -x -C "$work" --wildcards './usr/src/rustc-*/library' ;;
      *) dpkg -x "$package" "$work/unpacked" ;;
    esac
  done
}

assemble() {
  local work=$1 pinned=$2 host
  local toolchain=$work/toolchain from=$work/unpacked/usr
  host=$("$pinned/bin/rustc" -vV | sed -n 's/host: //p')
  mkdir -p "$toolchain/bin" "$toolchain/lib"
  cp "$from/bin/rustc" "$toolchain/bin/"
  cp -a "$from"/lib/*-linux-gnu/librustc_driver*.so "$from"/lib/*-linux-gnu/libLLVM* "$toolchain/lib/"
  cp -a "$from/lib/rustlib" "$toolchain/lib/"
  # Debian's package leaves out the linkers of WebAssembly (rust-lld, wasm-component-ld); rustup's fit.
  rm -rf "$toolchain/lib/rustlib/src" "$toolchain/lib/rustlib/$host/bin"
  ln -s "$pinned/lib/rustlib/$host/bin" "$toolchain/lib/rustlib/$host/bin"
  cat >"$toolchain/rustc" <<'WRAPPER'
#!/bin/sh
# Debian's rustc looks for its libraries in the system's folder; they are here.
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/bin/rustc" "$@"
WRAPPER
  chmod +x "$toolchain/rustc"
}

build_std() {
  local work=$1 pinned=$2 library to
  library=$(echo "$work"/usr/src/rustc-*/library)
  to=$work/toolchain/lib/rustlib/$target/lib
  say "building std for $target (about three CPU-minutes)"
  mkdir -p "$to" "$library/.cargo"
  printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "vendor"\n' >"$library/.cargo/config.toml"
  if ! (cd "$library" && env -u RUSTUP_TOOLCHAIN -u CARGO_ENCODED_RUSTFLAGS RUSTC="$work/toolchain/rustc" RUSTC_BOOTSTRAP=1 \
    CARGO_TARGET_DIR="$work/target" \
    RUSTFLAGS="-Cembed-bitcode=yes -Zforce-unstable-if-unmarked --remap-path-prefix=$library=/rustc/library" \
    "$pinned/bin/cargo" build -q -Zavoid-dev-deps --offline --release --manifest-path sysroot/Cargo.toml \
    --target "$target" --features compiler-builtins-mem) >"$work/log" 2>&1; then
    tail -n 40 "$work/log" >&2
    say "std did not build"
    return 1
  fi
  cp "$work/target/$target"/release/deps/*.rlib "$to/"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo -n "$@"; else return 1; fi
}

main "$@"
