# Two commands are enough: `make run` and `make test`. The second installs Debian's packages that the tests use (as root).

SHELL := /bin/bash
TARGET := target/x86_64-unknown-linux-gnu
PACKAGES := chromium firefox-esr iproute2 nftables libnss3-tools tinyproxy curl openssl procps python3-venv \
  debootstrap systemd-container file binutils prometheus \
  coturn python3-gi gir1.2-gst-plugins-bad-1.0 gstreamer1.0-nice gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
MISSING = $(shell for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done)

# With Go, other people's servers are among the tests.
GO_SERVERS := $(if $(shell command -v go 2>/dev/null),target/pebble/pebble)

# Packs a built binary as a Debian package.
CARGO_DEB := target/tools/bin/cargo-deb

.PHONY: run test check deps dist web e2e e2e-deps scenarios soak compare bench bench-parts bench-peers

## The server with the demo page, without a config.
run: web
	cargo run --release --quiet -- dev $(ARGS)

## Everything that must hold.
test: deps web
	cargo test --features sim
	$(MAKE) --no-print-directory e2e

## Style, and instructions for each packet against the baseline (benches/instructions.toml), before every commit.
check:
	cargo fmt --check
	cargo clippy --features sim --all-targets -- -D warnings
	cargo bench --quiet --features sim --bench instructions
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: licences are not checked"; fi

## What is handed out: a Debian package, an archive for other systems, their sums. In target/dist.
dist: web $(CARGO_DEB)
	cargo build --release
	appliance/pack.sh release

$(CARGO_DEB):
	cargo install --quiet --locked --root target/tools cargo-deb@3.6.0

## Real browsers and other people's clients behind a real firewall, in network namespaces. Needs root.
e2e: e2e-deps web
	cargo test --features sim --no-run
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory target/clean-root $(CARGO_DEB) && appliance/pack.sh dev; fi
	@if [ "$$(id -u)" = 0 ]; then cd tests/e2e && node --test --test-concurrency=1 --test-force-exit --test-reporter=spec *.test.mjs; \
	else echo "skipped without root: browser tests and other clients (network namespaces)"; fi

## The quality that browsers see through loss, switches and floods: limits that hold on a machine that does nothing else.
scenarios: e2e-deps web
	cargo test --features sim --no-run
	cd tests/e2e && POSTERN_SCENARIOS=1 node --test --test-force-exit --test-reporter=spec --test-name-pattern='^(l|m|n):' calls.test.mjs
	cd tests/e2e && POSTERN_SCENARIOS=1 node --test --test-concurrency=1 --test-force-exit --test-reporter=spec resilience.test.mjs whip.test.mjs

## A day of calls in some minutes: ten thousand short ones while settings and certificates change.
soak:
	POSTERN_SOAK_CALLS=10000 cargo test --features sim --test operations short_calls -- --nocapture

## What the server costs, row by row, each beside its floor: target/bench/summary.json. Twenty minutes on a quiet machine, as root.
bench:
	cargo bench --bench server

## Parts of a packet's way one by one: codecs, SRTP, numbers, store.
bench-parts:
	cargo bench --bench parts

## The same with coturn and LiveKit's server (where there is Go) under the same load.
bench-peers: $(if $(shell command -v go 2>/dev/null),target/livekit/server)
	@command -v turnserver >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends coturn; }
	cargo bench --bench server -- --peers

## The same session against LiveKit's server and ours: what differs stands in docs/livekit.md. Needs Go 1.25.
compare: e2e-deps web target/livekit/server
	cargo test --features sim --no-run
	cd tests/e2e && node --test --test-concurrency=1 --test-force-exit --test-reporter=spec livekit.compare.mjs

target/livekit/server:
	GOBIN=$(CURDIR)/target/livekit go install github.com/livekit/livekit-server/cmd/server@v1.11.0

## Debian packages that the tests use.
deps:
	@if [ -n "$(MISSING)" ]; then \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(MISSING) && { systemctl disable --now tinyproxy prometheus coturn >/dev/null 2>&1 || true; }; \
	  else echo "as root: apt-get install $(MISSING)"; exit 1; fi; fi

# Let's Encrypt's test server: certificates are ordered from it.
target/pebble/pebble:
	GOBIN=$(CURDIR)/target/pebble go install github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1

# A Debian in which nothing is installed: the package is, in it.
target/clean-root:
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates,curl,openssl,iproute2,nftables,procps bookworm $@.new
	mv $@.new $@

e2e-deps: deps tests/e2e/node_modules/.package-lock.json tests/e2e/.venv/installed $(GO_SERVERS)

tests/e2e/node_modules/.package-lock.json: tests/e2e/package.json
	cd tests/e2e && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm install --no-audit --no-fund --silent

tests/e2e/.venv/installed: tests/e2e/requirements.txt
	python3 -m venv tests/e2e/.venv
	tests/e2e/.venv/bin/pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
	touch $@

## The page that is built into the binary.
web: web/dist/index.html

web/dist/index.html: web/package.json web/vite.config.js web/index.html $(wildcard web/src/*)
	cd web && npm install --no-audit --no-fund --silent && npm run build --silent
	touch web/dist/.gitkeep web/dist/index.html
