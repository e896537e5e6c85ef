#!/bin/sh
# rustc for crates whose branches libFuzzer is to see (LLVM's SanitizerCoverage). One unit each, or counters would be lost.
rustc=$1
shift
exec "$rustc" "$@" -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Cdebug-assertions=on
