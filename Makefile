# make demo              the whole path on this machine: no root, no Docker, no Kubernetes
# make test              all tests, tier by tier
# make test-unit         format, lints, documentation, unused dependencies, and all tests that need no other program
# make test-integration  against real registries, oras, kube-apiserver and csi-sanity; needs Go
# make test-e2e          pods on a real node with kubelet and containerd; needs Go and root
# make test-extra        beside Flux, Argo CD, kyverno and gatekeeper, as root also cert-manager and Kubernetes' own tests for storage drivers; needs Go (not part of make test)
# make bench             measures beside other programs, writes benches/RESULTS.md; needs Go, some parts root
# make bench-quick       the same with smaller cases, in less than 5 minutes after the build; writes target/bench/RESULTS.md
# make fuzz              fuzzes the parsers, FUZZ_SECONDS=60 for each target
# make binary            the static binary
# make image             its container image, built without Docker; PUSH=REGISTRY/oras-csi:TAG also pushes it, with PLAIN_HTTP=1
#                        to a registry without TLS
# make chart             checks the Helm chart against a real API server
# make skew COMMIT=…     runs the driver of an earlier commit with this webhook, and the other way round; needs Go and root
# make release-dry-run   makes all that a release publishes, and publishes it to a registry of this machine; needs Go
# make docs              builds the documentation as a site: target/docs/book/index.html

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo binary image chart test test-unit test-integration test-e2e test-extra test-extra-node fuzz bench bench-quick skew release-dry-run docs

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
BINARY := $(TARGET)/$(TRIPLE)/release/oras-csi
IMAGE := $(TARGET)/testbed/images/oras-csi.tar
TESTBED := tests/testbed
# Records the time of a command for .ci/run.
STAGE := $(TESTBED)/stage
# CI fails if Cargo.lock is not up to date.
LOCKED := $(if $(filter true,$(CI)),--locked)
# A command that runs the demo as another user: RUN_AS="setpriv --reuid=65534 --regid=65534 --clear-groups".
RUN_AS :=

# The tests of each tier, by the names of their targets. Every test target that is not of another tier is a unit test.
SERIAL := integration_serial e2e
INTEGRATION := integration integration_demo
EXTRA := extra extra_node
TEST_TARGETS := $(notdir $(patsubst %/main.rs,%,$(wildcard */tests/*/main.rs)) \
  $(basename $(wildcard */tests/*.rs examples/*/tests/*.rs)))
UNIT := $(filter-out $(SERIAL) $(INTEGRATION) $(EXTRA),$(TEST_TARGETS))
# Integration tests mostly wait for other processes, so more of them run at once than there are cores.
INTEGRATION_THREADS ?= 4
# Many unit tests wait for timers, or for threads that write.
UNIT_THREADS ?= 3
# Always all packages: a package alone would enable fewer features of its dependencies, and build these again.
CARGO_TEST := cargo test $(LOCKED) --workspace

export ORAS_CSI_TESTBED_BIN ?= $(TARGET)/testbed/bin
export ORAS_CSI_TESTBED_IMAGES ?= $(TARGET)/testbed/images
export ORAS_CSI_BIN := $(BINARY)

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

demo:
	@$(STAGE) "demo: build" cargo build $(LOCKED) --workspace --bins
	@$(STAGE) "demo: run" $(RUN_AS) $(TARGET)/debug/oras-csi-demo --oras-csi $(TARGET)/debug/oras-csi

# The same source gives the same bytes in every folder: the names of these folders are replaced, in Rust and in C.
FOLDERS := $(CURDIR)=/source $(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo $(TARGET)=/target
# Static: the same file runs on a node, in an empty image and on a laptop. Cargo applies RUSTFLAGS to build scripts and
# procedural macros, which must be dynamic, unless a target is named.
binary: export RUSTFLAGS := -C target-feature=+crt-static $(addprefix --remap-path-prefix=,$(FOLDERS))
binary: export CFLAGS := $(CFLAGS) $(addprefix -ffile-prefix-map=,$(FOLDERS))
binary:
	$(STAGE) "release build" cargo build $(LOCKED) --release --target $(TRIPLE) --bin oras-csi
	$(if $(BINARY_COPY),install -D -m 755 $(BINARY) $(BINARY_COPY))

PUSH :=
image: binary
	deploy/image $(BINARY) $(IMAGE)
	$(if $(PUSH),PLAIN_HTTP=$(PLAIN_HTTP) deploy/release/push-image $(IMAGE) $(PUSH))

test:
	@$(TESTBED)/tiers unit integration e2e

test-unit:
	cargo fmt --all --check
	$(STAGE) "unit: lints" cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	$(STAGE) "unit: lints of the command without a node" cargo clippy $(LOCKED) --workspace --no-default-features --bin oras-csi -- -D warnings
	$(STAGE) "unit: unused dependencies" $(TESTBED)/machete
	RUSTDOCFLAGS="-D warnings" $(STAGE) "unit: documentation" cargo doc $(LOCKED) --workspace --no-deps --document-private-items
	$(STAGE) "unit: build" $(CARGO_TEST) --no-run --lib --bins $(addprefix --test ,$(UNIT))
	RUST_TEST_THREADS=$(UNIT_THREADS) $(STAGE) "unit: tests" $(CARGO_TEST) --no-fail-fast --lib --bins $(addprefix --test ,$(UNIT))
	$(STAGE) "unit: doctests" $(CARGO_TEST) --no-fail-fast --doc

# Built first and run offline, so that no server waits for a build.
test-integration: binary
	$(TESTBED)/packages integration
	$(STAGE) "integration: Go programs" $(TESTBED)/build integration
	$(STAGE) "integration: build" $(CARGO_TEST) --test 'integration*' --no-run
	$(STAGE) "integration: chart" $(TESTBED)/api-server $(TESTBED)/check-chart
	$(STAGE) "integration: permissions" $(TESTBED)/api-server $(TESTBED)/check-permissions
	$(STAGE) "integration: tests" $(TESTBED)/api-server bash -c '\
	  status=0; \
	  $(CARGO_TEST) --offline --no-fail-fast $(addprefix --test ,$(INTEGRATION)) \
	    -- --test-threads=$(INTEGRATION_THREADS) || status=1; \
	  $(CARGO_TEST) --offline --no-fail-fast --test integration_serial -- --test-threads=1 || status=1; \
	  exit $$status'

# One test at a time: they share the node. There is no network on it.
test-e2e: image
	$(TESTBED)/packages e2e
	$(STAGE) "e2e: Go programs" $(TESTBED)/build e2e
	$(STAGE) "e2e: build" $(CARGO_TEST) --test e2e --no-run
	IMAGES=$(IMAGE) $(STAGE) "e2e: tests" $(TESTBED)/one-node \
	  $(CARGO_TEST) --offline --no-fail-fast --test e2e -- --nocapture --test-threads=1

# One test at a time: each of these programs acts on the whole cluster.
test-extra: binary
	$(TESTBED)/packages integration
	$(TESTBED)/packages extra
	$(STAGE) "extra: Go programs" $(TESTBED)/build integration extra
	$(STAGE) "extra: build" $(CARGO_TEST) --test extra --no-run
	$(STAGE) "extra: tests" $(TESTBED)/api-server \
	  $(CARGO_TEST) --offline --no-fail-fast --test extra -- --test-threads=1
	$(if $(filter 0,$(shell id -u)),$(MAKE) --no-print-directory test-extra-node,@echo "extra: skipped the tests on a node, which need root")

test-extra-node: image
	$(TESTBED)/packages e2e
	$(STAGE) "extra: Go programs of the node" $(TESTBED)/build e2e extra-node
	$(STAGE) "extra: build for the node" $(CARGO_TEST) --test extra_node --no-run
	IMAGES=$(IMAGE) $(STAGE) "extra: tests on a node" $(TESTBED)/one-node \
	  $(CARGO_TEST) --offline --no-fail-fast --test extra_node -- --nocapture --test-threads=1

# Built first, and run offline. TMPDIR selects the disk below the loop devices. BENCH="pulls warm" measures only these
# sections. The section of the cluster needs the programs of a node, which a quick run does not build.
# ROUNDS=1 limits the rounds of each comparison.
ROUNDS ?=
bench bench-quick: export ORAS_CSI_BENCH_ROUNDS := $(ROUNDS)
bench: BENCH_PROGRAMS := $(if $(filter 0,$(shell id -u)),e2e)
bench bench-quick: binary
	$(foreach tier,bench $(BENCH_PROGRAMS),$(TESTBED)/packages $(tier);)
	$(STAGE) "bench: Go programs" $(TESTBED)/build bench $(BENCH_PROGRAMS)
	$(STAGE) "bench: build" cargo build $(LOCKED) --profile bench --package oras-csi-benches
	$(STAGE) "$@" benches/run $(if $(filter bench-quick,$@),quick,full) $(TARGET) $(BENCH)

FUZZ_SECONDS ?= 60
fuzz:
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(STAGE) "fuzz: build and run" $(TESTBED)/fuzz

chart:
	$(TESTBED)/packages integration
	$(TESTBED)/build helm kubectl etcd kube-apiserver
	$(TESTBED)/api-server $(TESTBED)/check-chart
	$(TESTBED)/api-server $(TESTBED)/check-permissions

# BUILDS=1 skips the second build, which shows that the image is reproducible.
release-dry-run: image
	$(TESTBED)/packages build
	$(STAGE) "release: dry run" deploy/release/dry-run $(BINARY) $(IMAGE)

COMMIT :=
SKEW := $(TESTBED)/skew "$(COMMIT)"
skew: image
	$(TESTBED)/packages e2e
	$(TESTBED)/build e2e
	$(CARGO_TEST) --test integration_serial --test e2e --no-run
	$(STAGE) "skew: beside an API server" $(SKEW) $(TESTBED)/api-server \
	  $(CARGO_TEST) --offline --test integration_serial skew:: -- --test-threads=1
	IMAGES=$(IMAGE) $(STAGE) "skew: on a node" $(SKEW) $(TESTBED)/one-node \
	  $(CARGO_TEST) --offline --test e2e lifecycle::skew:: -- --nocapture --test-threads=1

docs:
	$(STAGE) "documentation" docs/build $(TARGET)/docs/book
