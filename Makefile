# make demo     the whole path on this machine: no root, no Docker, no Kubernetes
# make test     all tests, in three tiers; each of them alone: test-unit, test-parts, test-node
# make fuzz     inputs that nobody thought of, for FUZZ_SECONDS=60 a target; needs a nightly compiler
# make binary   the one static binary
# make image    its container image, without Docker
# make chart    checks the Helm chart

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo binary image chart test test-unit test-parts test-node fuzz

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
BINARY := $(TARGET)/$(TRIPLE)/release/oras-csi
IMAGE := $(TARGET)/testbed/images/oras-csi.tar
TESTBED := tests/testbed
# A change of Cargo.lock that nobody committed shall not pass unnoticed.
LOCKED := $(if $(filter true,$(CI)),--locked)
# Who runs the demo, say RUN_AS="setpriv --reuid=65534 --regid=65534 --clear-groups".
RUN_AS :=

export ORAS_CSI_TESTBED_BIN ?= $(TARGET)/testbed/bin
export ORAS_CSI_TESTBED_IMAGES ?= $(TARGET)/testbed/images
export ORAS_CSI_BIN := $(BINARY)

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

demo: binary
	@$(RUN_AS) $(BINARY) demo

# Static: the same file runs on a node, in an empty image and on a laptop. Naming the target keeps the
# flags away from build scripts and procedural macros, which must stay dynamic.
binary:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build $(LOCKED) --release --target $(TRIPLE) --bin oras-csi
	$(if $(BINARY_COPY),install -D -m 755 $(BINARY) $(BINARY_COPY))

image: binary
	deploy/image $(BINARY) $(IMAGE)

test:
	@$(TESTBED)/tiers unit parts node

test-unit:
	cargo fmt --all --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	cargo test $(LOCKED) --no-fail-fast --workspace --exclude oras-csi-tests
	cargo test $(LOCKED) --no-fail-fast -p oras-csi-tests --lib $(if $(wildcard tests/tests/unit_*),--test 'unit_*')

# Built first, then run offline: the servers wait for nothing, and on the node there is no network.
test-parts: binary
	$(TESTBED)/packages parts
	$(TESTBED)/build parts
	cargo test $(LOCKED) -p oras-csi-tests --test 'parts_*' --no-run
	$(TESTBED)/api-server $(TESTBED)/check-chart
	$(TESTBED)/api-server cargo test --offline --no-fail-fast -p oras-csi-tests --test 'parts_*'

# Root's alone, so one test at a time: they share the node.
test-node: image
	$(TESTBED)/packages node
	$(TESTBED)/build node
	cargo test $(LOCKED) -p oras-csi-tests --test 'node_*' --no-run
	IMAGES=$(IMAGE) $(TESTBED)/one-node \
	  cargo test --offline --no-fail-fast -p oras-csi-tests --test 'node_*' -- --nocapture --test-threads=1

FUZZ_SECONDS ?= 60
fuzz:
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(TESTBED)/fuzz

chart:
	$(TESTBED)/packages parts
	$(TESTBED)/build helm kubectl etcd kube-apiserver
	$(TESTBED)/api-server $(TESTBED)/check-chart
