# make          runs the tests
# make build    makes bin/weft, one static program, and bin/weft-cni, the CNI plugin
# make test-vm  runs tests on another kernel, in a virtual machine
# make image    makes bin/weft-kube-ARCH.tar, the container image for Kubernetes
# make test-kube  runs the tests with a real Kubernetes cluster, in machines of namespaces
# make test-netpol  runs upstream's tests of policies on such a cluster
# make check    lints, and checks what is generated and what imports what
# make demo     shows a mesh of three hosts at work on this machine
# make test-docker  runs the tests with real Docker engines, in machines of namespaces
# make bench    measures the mesh against other overlays and the bare underlay
# make bench-policy  measures network policies at the size of a large cluster, and next to kube-router
# make bench-dns  measures service discovery against CoreDNS
# make bench-docker  measures docker run with and without weft
# make bench-cni  measures a pod's interface next to bridge and host-local
# make test-arm64  runs programs and tests on arm64, emulated
# make fuzz     runs each fuzz test for FUZZTIME
# make packages makes dist/*.deb and dist/*.rpm; make test-packages tests them
# make site     builds the documentation to site/public

GO       ?= go
FUZZTIME ?= 60s
VERSION  ?= $(shell git describe --tags --dirty 2>/dev/null)

# Tests and labs make network namespaces, which takes root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

LDFLAGS := -s -w $(if $(VERSION),-X github.com/weft-net/weft/internal/version.number=$(VERSION))

.DEFAULT_GOAL := test
.PHONY: test test-vm test-docker test-kube test-netpol test-packages packages build image check generate fuzz bench bench-dns bench-docker bench-policy bench-cni test-arm64 rivals demo site clean race-deps

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./prog/weft ./prog/weft-cni

# The image for each architecture, made without Docker and without a registry.
IMAGE_ARCHS ?= amd64 arm64
image:
	for arch in $(IMAGE_ARCHS); do \
	  CGO_ENABLED=0 GOARCH=$$arch $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/$$arch/ ./prog/weft-kube ./prog/weft-cni && \
	  (cd prog/weft-kube/chained && CGO_ENABLED=0 GOARCH=$$arch $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/bin/$$arch/ tool) && \
	  $(GO) run ./prog/weft-kube/image -arch $$arch -programs bin/$$arch -o bin/weft-kube-$$arch.tar || exit 1; \
	done

# Packages for systems with systemd, of each of ARCHS.
ARCHS ?= amd64 arm64
DIST  ?= dist
packages:
	@GO='$(GO)' ARCHS='$(ARCHS)' DIST='$(DIST)' prog/packages/build

# The race detector needs a C compiler, and nothing else here does.
race-deps:
	@command -v gcc >/dev/null || command -v clang >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "make test: install a C compiler for the race detector" >&2; exit 1; }; \
	  echo "make test: installing gcc for the race detector"; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; }

# Packages without goroutines that simulate many peers: the race detector would
# find nothing in them, and take ten times as long.
PURE := $(addprefix github.com/weft-net/weft/,mesh/topology dns/names)

test: race-deps
	$(SUDO) $(GO) test -race -timeout 20m $$($(GO) list ./... | grep -vxF $(PURE:%=-e %))
	$(SUDO) $(GO) test $(PURE)

# These tests fail, and are not skipped, where something is missing. The programs
# of Kubernetes are built once, into a cache outside the clone: ten minutes.
KUBE_TESTS := ./cmd/kubetest
KUBE_RUN ?= .
test-kube: IMAGE_ARCHS := $(shell $(GO) env GOARCH)
test-kube: image
	$(SUDO) .ci/kube-packages
	programs=$$(GO=$(GO) .ci/kube-programs) && \
	  $(SUDO) env KUBE_PROGRAMS=$$programs WEFT_KUBE_IMAGE=$(CURDIR)/bin/weft-kube-$(IMAGE_ARCHS).tar \
	  $(GO) test -tags kube -timeout 60m -count=1 -v -run '$(value KUBE_RUN)' $(KUBE_TESTS)

# Upstream's own tests of NetworkPolicies, unchanged: those whose names FOCUS matches,
# WORKERS of them at a time. And those of ClusterNetworkPolicies, in SUITES.
SUITES  ?= TestUpstream|TestConformance
FOCUS   ?= Netpol
WORKERS ?= 4
test-netpol: IMAGE_ARCHS := $(shell $(GO) env GOARCH)
test-netpol: image
	$(SUDO) .ci/kube-packages
	programs=$$(GO=$(GO) .ci/kube-programs suite) && \
	  $(SUDO) env KUBE_PROGRAMS=$$programs WEFT_KUBE_IMAGE=$(CURDIR)/bin/weft-kube-$(IMAGE_ARCHS).tar \
	  NETPOL_FOCUS='$(value FOCUS)' NETPOL_WORKERS=$(WORKERS) \
	  $(GO) test -tags 'kube netpol' -timeout 200m -count=1 -v -run '$(value SUITES)' $(KUBE_TESTS)

# The tests that ask something of the kernel, on Debian's instead of this machine's;
# or those of PKG that RUN matches.
KERNEL ?= cloud-amd64
SUITE  ?=
RUN    ?= .
LABS   := FastDatapath|Express|Tunnel|Inject|PasswordEnds|Translated|Churn|UnderlayShows|DoNotFit|ExposeAndHide|Bandwidth|LimitsOfOthers
IN_VM   = vm=$$(KERNEL=$(KERNEL) SUITE=$(SUITE) .ci/vm/prepare) && CGO_ENABLED=0 exec $(GO) test -p 1 -count=1 -timeout 60m -vet=off \
	  -ldflags='-s -w' -exec "$(CURDIR)/.ci/vm/boot $$vm"

# In the machine nothing can be built. The tests of cmd look for these.
VM_CHAINED = cd prog/weft-kube/chained && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/cmd/testdata/chained/ tool

test-vm:
	$(VM_CHAINED)
ifdef PKG
	$(IN_VM) -run '$(value RUN)' $(PKG)
else
	$(IN_VM) ./router ./router/fastpath/kernel ./router/tap ./internal/udp ./router/wireguard ./internal/netdev ./internal/lab/testbed ./policy
	$(IN_VM) -parallel 1 -run '$(LABS)' ./cmd
endif

# What asks nothing of the kernel, on the other processor that weft is built for.
test-arm64:
	GO=$(GO) .ci/arm64

# These tests fail, and are not skipped, where something is missing.
DOCKER_TESTS := ./internal/lab/sandbox ./cmd/dockertest
DOCKER_RUN   ?= .
test-docker: race-deps
	$(SUDO) .ci/docker-packages
	$(SUDO) $(GO) test -race -tags docker -timeout 30m -count=1 -run '$(value DOCKER_RUN)' $(DOCKER_TESTS)

# These fail too where something is missing. They install into a folder of theirs, and into a
# container that systemd runs in.
test-packages:
	$(SUDO) .ci/package-tools
	$(SUDO) $(GO) test -tags packages -timeout 20m -count=1 ./prog/packages

check:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	  [ -z "$$unformatted" ] || { echo "make check: gofmt would change: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags docker $(DOCKER_TESTS)
	$(GO) vet -tags 'kube netpol' $(KUBE_TESTS)
	$(GO) vet -tags packages ./prog/packages
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) run ./prog/weft gen-docs site/pages/commands.md.new
	@cmp -s site/pages/commands.md site/pages/commands.md.new || { rm -f site/pages/commands.md.new; \
	  echo "make check: site/pages/commands.md is not what the command tree says; run: make generate" >&2; exit 1; }
	@rm -f site/pages/commands.md.new
	$(GO) test ./internal/layout
	GO=$(GO) .ci/generated
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run .ci/engines .ci/cluster .ci/arm64 .ci/fuzz .ci/generated .ci/vm/* .ci/docker-packages .ci/kube-packages .ci/kube-programs .ci/package-tools prog/packages/build prog/packages/scripts/* prog/packages/testdata/*; else echo "make check: shellcheck is not here, scripts are not checked"; fi

generate:
	$(GO) generate ./router/fastpath/kernel
	$(GO) run ./prog/weft gen-docs site/pages/commands.md

fuzz:
	GO=$(GO) .ci/fuzz $(FUZZTIME)

demo: build
	$(SUDO) bin/weft lab demo --hosts 3

# Programs that weft is measured next to; weft itself does not need them.
rivals:
	cd internal/lab/rival/programs && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/rivals/ tool

bench-docker:
	$(SUDO) .ci/docker-packages
	$(SUDO) $(GO) test -tags docker -run '^$$' -bench DockerRun -benchtime 1x -timeout 30m ./cmd/dockertest

bench: build rivals
	$(SUDO) bin/weft lab bench --rivals bin/rivals

# kube-router runs iptables and ipset, and is in a module of its own.
bench-policy:
	@command -v ipset >/dev/null && command -v iptables >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "make bench-policy: install ipset and iptables" >&2; exit 1; }; \
	  echo "make bench-policy: installing ipset and iptables for kube-router"; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends ipset iptables >/dev/null; }
	cd internal/lab/rival/kuberouter && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/rivals/ tool
	$(SUDO) $(GO) test -run '^$$' -bench . ./policy/...
	$(SUDO) env WEFT_RIVALS=$(CURDIR)/bin/rivals $(GO) test -run '^$$' -bench Engines -benchtime 1x ./kube

# What weft-cni is measured next to is in a module of its own, as weft does not need it.
bench-cni:
	cd internal/lab/rival/cniplugins && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/rivals/ tool
	$(SUDO) env WEFT_RIVALS=$(CURDIR)/bin/rivals $(GO) test -run '^$$' -bench CNI -benchtime 1x ./cmd

# CoreDNS is in a module of its own, as its build takes ten minutes.
bench-dns: build
	cd internal/lab/rival/coredns && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/rivals/ tool
	$(SUDO) bin/weft lab bench --rivals bin/rivals --tables dns

site:
	$(GO) run ./site -out site/public

clean:
	rm -rf bin dist site/public cmd/testdata/chained
