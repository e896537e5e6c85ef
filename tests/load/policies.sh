#!/bin/bash
# How long calls of policies take: the first-party ones, and the example in each language that was built. Usage: policies.sh [CALLS]
set -euo pipefail
cd "$(dirname "$0")/../.."
# With the whole workspace, so that nothing is compiled for a second time.
cargo build --quiet --locked --release --workspace --example call-times
target/release/examples/call-times "$@"
