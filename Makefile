# parrel. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
BIN := bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
# What the compiler knows of where the time goes. It has not the name default.pgo: go build ./... and
# go test would compile every dependency a second time. PGO=off does without.
PGO ?= cmd/parrel/parrel.pgo
PKGS ?= ./...

.PHONY: help build consul images interop compose-check demo demo-compose test test-short race lint fuzz e2e sim conformance bench-propagation bench-footprint bench-intercept bench bench-profile pgo gen gen-check presubmit clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 22

build: ## bin/parrel
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -pgo $(PGO) -ldflags '$(LDFLAGS)' -o $(BIN)/parrel ./cmd/parrel

demo: build ## build and run the demo mesh on loopback: no Consul, no Docker, no root
	$(BIN)/parrel demo

consul: $(BIN)/consul ## Consul's server, for the tests and the demo with --consul

# Consul is a tool in a module of its own: it is run, never linked.
$(BIN)/consul: test/tools/consul/go.mod test/tools/consul/go.sum
	@mkdir -p $(BIN)
	cd test/tools/consul && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ github.com/hashicorp/consul
	@touch $@

# CONSUL_IMAGE=hashicorp/consul:1.20 is used where it can be had; then none is built.
CONSUL_IMAGE ?=

images: build ## container images FROM scratch: parrel/parrel, parrel/shop and, without CONSUL_IMAGE, parrel/consul
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/shop ./examples/shop/cmd/shop
	$(if $(CONSUL_IMAGE),,$(MAKE) consul)
	deploy/images/build parrel $(BIN)/parrel /parrel /var/lib/parrel /run/parrel /tmp
	deploy/images/build shop $(BIN)/shop /shop
	$(if $(CONSUL_IMAGE),,deploy/images/build consul $(BIN)/consul /bin/consul /consul/data /consul/config /tmp)

demo-compose: images ## the mesh of examples/compose, checked and taken down: needs a Docker engine and docker-compose
	CONSUL_IMAGE=$(or $(CONSUL_IMAGE),parrel/consul:latest) $(GO) run ./examples/compose/check

test: build consul interop compose-check lint ## everything that has to pass; installs and builds what it needs
	$(GO) run ./test/run $(PKGS)

INTEROP := h2spec grpc-interop-client grpc-interop-server

interop: $(INTEROP:%=$(BIN)/%) ## outside conformance suites, for the tests: h2spec, gRPC's interop client and server

# They are tools in a module of their own: run, never linked.
$(INTEROP:%=$(BIN)/%) &: test/tools/interop/go.mod test/tools/interop/go.sum
	@mkdir -p $(BIN)
	cd test/tools/interop && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/h2spec github.com/summerwind/h2spec/cmd/h2spec
	cd test/tools/interop && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/grpc-interop-client google.golang.org/grpc/interop/client
	cd test/tools/interop && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$(BIN)/grpc-interop-server google.golang.org/grpc/interop/server
	@touch $(INTEROP:%=$(BIN)/%)

compose-check: $(BIN)/composecheck ## Compose v2's own reader of compose files, for the tests of inject

$(BIN)/composecheck: test/tools/compose/go.mod test/tools/compose/go.sum test/tools/compose/main.go
	@mkdir -p $(BIN)
	cd test/tools/compose && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ .
	@touch $@

# Packages whose tests need neither Consul nor processes of their own.
UNIT = $(shell $(GO) list ./... | grep -vE '/(test/(e2e|conformance|demo)|discovery/consul|examples/grpc-xds)(/|$$)')

test-short: ## unit tests and simulations, without Consul and without processes
	$(GO) test $(UNIT)

race: ## the same with the race detector
	CGO_ENABLED=1 $(GO) test -race $(UNIT)

lint: ## gofmt, go vet and staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$bad" ] || { echo "gofmt needed: $$bad"; exit 1; }
	$(GO) vet ./...
	cd test/tools/lint && $(GO) build -o $(CURDIR)/$(BIN)/staticcheck honnef.co/go/tools/cmd/staticcheck
	$(BIN)/staticcheck ./...

gen: ## rewrite generated files
	$(GO) generate ./...

gen-check: gen ## fail when a generated file is not up to date
	git diff --exit-code

fuzz: ## every fuzz target for FUZZTIME (default 60s) each
	$(GO) run ./test/fuzz $(or $(FUZZTIME),60s)

e2e: build consul ## whole meshes on a real Consul
	$(GO) run ./test/run ./test/e2e/...

sim: ## whole meshes in virtual time
	$(GO) run ./test/run ./test/sim/...

conformance: build interop ## outside clients, unmodified
	$(GO) run ./test/run ./test/conformance/...

bench-propagation: build consul ## registration to endpoint in use; bytes of one change
	$(GO) run ./test/bench/propagation

bench-footprint: build ## memory and start of an idle sidecar
	$(GO) run ./test/bench/footprint

bench-intercept: ## what redirection costs: connections, round trips and bytes; needs root
	$(GO) run ./test/bench/intercept

# SERIES, ROUNDS, SECS, ONLY, PATIENCE and PRIORITY=1 narrow it: make bench SERIES=h1,h2 ROUNDS=5 SECS=5
COMPARE = $(GO) run ./test/bench/compare $(if $(SERIES),-series $(SERIES)) $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(SECS),-secs $(SECS)) $(if $(ONLY),-only $(ONLY)) $(if $(PATIENCE),-patience $(PATIENCE)) $(if $(PRIORITY),-priority)

bench: build ## side by side with HAProxy and nginx; writes test/bench/results.md
	$(COMPARE)

bench-profile: build ## where parrel's time goes under the load of SERIES (default h1)
	$(COMPARE) -profile $(if $(SERIES),,-series h1)

pgo: build ## measure anew where the time goes, for the compiler (cmd/parrel/parrel.pgo)
	$(COMPARE) -pgo $(if $(SERIES),,-series h1,h2,grpc,mtls,https,l4tls,l4tls-ping,ping-64,lat)

presubmit: test race gen-check ## before a change is proposed

clean: ## remove what was built
	rm -rf $(BIN)
