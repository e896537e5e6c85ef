# Everything a fresh Debian or Ubuntu machine with Rust, Python 3 and a C compiler needs is installed by these targets.
#   make demo    builds, fetches a small model, plays the demo, ends by itself
#   make run     the same set-up, left serving until Ctrl-C
#   make test    every test
#   make lint    formatting, clippy; licences and bans where cargo-deny is installed
#   make bench   beside nginx, in one run
#   make fuzz    every parser of foreign bytes, for a minute each
#   make check-cuda  builds the engine for NVIDIA GPUs and runs its tests; needs no GPU

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

MODEL := smollm2-135m-instruct
RELEASE := target/release
CARGO := cargo

# The kernels of the engine use AVX2 where there is one (see .cargo/config.toml); without it, build for any x86-64.
ifeq ($(shell uname -m),x86_64)
ifeq ($(shell grep -c -m1 avx2 /proc/cpuinfo),0)
export RUSTFLAGS := -C target-cpu=x86-64
endif
endif

.PHONY: build plugins model demo run test faketime lint bench fuzz check-cuda deploy-check clean

build: plugins
	@echo "== building (the first time takes several minutes)"
	$(CARGO) build --locked --release --workspace

# The WebAssembly policies, with whatever toolchain they need.
plugins:
	@echo "== building the policies for WebAssembly"
	plugins/build.sh

model: build
	@$(RELEASE)/postern model pull $(MODEL)

demo: build
	@$(RELEASE)/postern demo

run: build
	@$(RELEASE)/postern demo --keep

# Always the whole workspace: with another selection of packages cargo would build many dependencies a second time.
test: build model target/venv/ready faketime
	@echo "== unit tests, and scenarios through the real binary"
	$(CARGO) test --locked --release --workspace

# Unmodified clients, in an environment of their own.
target/venv/ready: tests/requirements.txt
	@echo "== client libraries for the tests"
	python3 -m venv target/venv
	target/venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

# Scenarios move the wall time of the real binary by days.
faketime:
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || { \
	echo "== installing faketime"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends faketime >/dev/null; }

lint:
	@echo "== formatting"
	$(CARGO) fmt --all --check
	@echo "== clippy"
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "== licences and bans are not checked: cargo install cargo-deny"; fi

bench: build model
	tests/load/bench.sh
	tests/load/handshakes.sh

check-cuda:
	local-engine/cuda/check.sh

deploy-check: build
	deploy/check.sh $(RELEASE)/postern

clean:
	$(CARGO) clean
