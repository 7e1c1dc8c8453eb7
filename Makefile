# make           runs the tests, as make test does
# make unit      runs the tests that need no root and no network, in about a minute
# make test      runs all tests of this machine's kernel; needs root
# make check     lints, and checks what is generated
# make build     makes bin/weft, one static program, and bin/weft-cni, the CNI plugin
# make demo      shows a mesh of three hosts at work on this machine
# make fuzz      runs each fuzz test for FUZZTIME
# make site      builds the documentation to site/public
# make generate  compiles the eBPF programs and writes the reference of the commands
#
# Tests with more around them; each installs what it needs and says so:
#
# make test-docker    with real Docker engines, in sandbox hosts
# make test-firewalls next to firewalld, ufw, NetworkManager and systemd-networkd
# make test-kube      with a real Kubernetes cluster, in sandbox hosts
# make test-netpol    upstream's tests of network policies on such a cluster
# make test-packages  the Debian and RPM packages
# make test-vm        on another kernel, in a virtual machine
# make test-arm64     on arm64, emulated
#
# make packages  makes dist/*.deb and dist/*.rpm
# make image     makes bin/weft-kube-ARCH.tar, the container image for Kubernetes
#
# make bench          measures the mesh next to other overlays and the bare underlay
# make lab-cost       measures what it costs to start labs of 10 to 60 hosts
# make bench-compare  measures BASE and this tree, and compares them
# make bench-policy, bench-dns, bench-docker, bench-cni  measure these parts
# make vulncheck      looks for known vulnerabilities
# make cuts           cuts each link CUTS times in each mode, under ping
# make chaos          lets random accidents happen to eight hosts for CHAOS
# make soak           runs the simulation with lying members for SOAK

GO       ?= go
FUZZTIME ?= 60s
SOAK     ?= 10m
CUTS     ?= 20
CHAOS    ?= 10m
CHAOSSEED ?= 0
VERSION  ?= $(shell git describe --tags --dirty 2>/dev/null)

# Tests and labs make network namespaces, which takes root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

LDFLAGS := -s -w $(if $(VERSION),-X github.com/weft-net/weft/internal/version.number=$(VERSION))

.DEFAULT_GOAL := test
.PHONY: test unit vulncheck soak cuts chaos lab-cost bench-compare test-vm test-docker test-firewalls test-kube test-netpol test-packages packages build image check generate fuzz bench bench-dns bench-docker bench-policy bench-cni test-arm64 rivals demo site clean test-deps

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

# The race detector needs a C compiler, and the tests of other software's rules its programs.
test-deps:
	@missing=; \
	command -v gcc >/dev/null || command -v clang >/dev/null || missing="gcc libc6-dev"; \
	command -v nft >/dev/null || missing="$$missing nftables"; \
	command -v iptables >/dev/null || missing="$$missing iptables"; \
	[ -z "$$missing" ] || { \
	  command -v apt-get >/dev/null || { echo "make test: install a C compiler, nft and iptables" >&2; exit 1; }; \
	  echo "make test: installing $$missing"; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }

# Packages without goroutines that simulate many peers: the race detector would find
# nothing in them, and take ten times as long.
PURE := $(addprefix github.com/weft-net/weft/,mesh/topology dns/names)

test: test-deps
	$(SUDO) env GO=$(GO) .ci/test -race -timeout 20m $$($(GO) list ./... | grep -vxF $(PURE:%=-e %))
	$(SUDO) env GO=$(GO) .ci/test $(PURE)

# Tests that need no root, no package and no network: for the loop of edit and test.
unit:
	WEFT_UNIT=1 $(GO) test -short -timeout 5m $$($(GO) list ./... | grep -v /e2e/)

# These tests fail, and are not skipped, where something is missing. The programs
# of Kubernetes are built once, into a cache outside the clone: ten minutes.
KUBE_TESTS := ./e2e/kube
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
IN_VM   = vm=$$(KERNEL=$(KERNEL) SUITE=$(SUITE) .ci/vm/prepare) && CGO_ENABLED=0 exec $(GO) test -p 1 -count=1 -timeout 60m -vet=off \
	  -ldflags='-s -w' -exec "$(CURDIR)/.ci/vm/boot $$vm"

# In the machine nothing can be built. The tests of e2e/cni look for these.
VM_CHAINED = cd prog/weft-kube/chained && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/e2e/cni/testdata/chained/ tool

test-vm:
	$(VM_CHAINED)
ifdef PKG
	$(IN_VM) -run '$(value RUN)' $(PKG)
else
	GO=$(GO) KERNEL=$(KERNEL) SUITE=$(SUITE) .ci/vm/test
endif

# What asks nothing of the kernel, on the other processor that weft is built for.
test-arm64:
	GO=$(GO) .ci/arm64

# These tests fail, and are not skipped, where something is missing.
DOCKER_TESTS := ./internal/lab/sandbox ./e2e/docker
DOCKER_RUN   ?= .
test-docker: test-deps
	$(SUDO) .ci/docker-packages
	$(SUDO) $(GO) test -race -tags docker -timeout 30m -count=1 -run '$(value DOCKER_RUN)' $(DOCKER_TESTS)

FIREWALL_RUN ?= .
test-firewalls: test-deps
	$(SUDO) .ci/firewall-packages
	$(SUDO) $(GO) test -race -tags firewalls -timeout 15m -count=1 -run '$(value FIREWALL_RUN)' ./e2e/firewalls

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
	$(GO) vet -tags firewalls ./e2e/firewalls
	$(GO) vet -tags 'kube netpol' $(KUBE_TESTS)
	$(GO) vet -tags packages ./prog/packages
	$(GO) tool -modfile=internal/tools/go.mod golangci-lint run --allow-parallel-runners ./...
	$(GO) mod tidy -diff
	$(GO) run ./prog/weft gen-docs site/pages/commands.md.new
	@cmp -s site/pages/commands.md site/pages/commands.md.new || { rm -f site/pages/commands.md.new; \
	  echo "make check: site/pages/commands.md is not what the command tree says; run: make generate" >&2; exit 1; }
	@rm -f site/pages/commands.md.new
	$(GO) test ./internal/layout
	GO=$(GO) .ci/generated
	.ci/shellcheck

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
	$(SUDO) $(GO) test -tags docker -run '^$$' -bench DockerRun -benchtime 1x -timeout 30m ./e2e/docker

bench: build rivals
	$(SUDO) bin/weft lab bench --rivals bin/rivals

# Fails if the CPU time grows faster than the number of sessions, or 60 hosts take over 2 minutes.
LAB_COST ?= 10 20 40 60
lab-cost:
	$(SUDO) env WEFT_LAB_COST='$(LAB_COST)' $(GO) test -run '^$$' -bench BenchmarkHosts -benchtime 1x -timeout 30m ./e2e/lab

# Another commit against this tree, by benchstat.
BASE ?= HEAD~1
bench-compare:
	$(SUDO) env GO=$(GO) .ci/bench-compare $(BASE)

# Members that lie at random, ten years of hosts that come and go, and software that damages a host.
soak:
	WEFT_SOAK=$(SOAK) $(GO) test -count 1 -timeout 0 -run 'TestLiarsTakeNothing|TestYearsOfChurn|TestConvergenceWithLiars|TestChangesAreKnownEverywhereInASecond' -v ./ipam ./ipam/ring ./mesh/records ./mesh/bindings
	$(SUDO) env WEFT_SOAK=$(SOAK) $(GO) test -count 1 -timeout 0 -run TestAnyDamage -v ./e2e/repair

# A relay takes over in under a second.
cuts:
	$(SUDO) env WEFT_CUTS=$(CUTS) $(GO) test -count 1 -timeout 0 -run TestRelayTakesOver -v ./e2e/datapath

# The log names the seed: make chaos CHAOSSEED=N has the same accidents.
chaos:
	$(SUDO) env WEFT_CHAOS=$(CHAOS) $(GO) test -count 1 -timeout 0 -run TestChaos -v ./e2e/repair -seed=$(CHAOSSEED)

# Known vulnerabilities in what weft calls; asks vuln.go.dev.
vulncheck:
	$(GO) tool -modfile=internal/tools/go.mod govulncheck ./...

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
	$(SUDO) env WEFT_RIVALS=$(CURDIR)/bin/rivals $(GO) test -run '^$$' -bench CNI -benchtime 1x ./e2e/cni

# CoreDNS is in a module of its own, as its build takes ten minutes.
bench-dns: build
	cd internal/lab/rival/coredns && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/rivals/ tool
	$(SUDO) bin/weft lab bench --rivals bin/rivals --tables dns

site:
	$(GO) run ./site -out site/public

clean:
	rm -rf bin bench dist site/public e2e/cni/testdata/chained
