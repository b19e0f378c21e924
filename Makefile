# mochila: `make test` on any checkout, `make install PREFIX=/usr` for packagers, `.ci/run` for everything CI runs.

PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO      ?= go

LDFLAGS   = -s -w -X main.version=$(VERSION)
# sendmail lives for a millisecond: its runtime neither samples allocations nor preempts, nor asks twice how many processors
# there are. Without that it runs as well, for some percent more processor time.
BRIEF     = memprofilerate=0,profstackdepth=0,asyncpreemptoff=1,updatemaxprocs=0
# Nor does it live to see a garbage collection, and the former collector has one page to touch less for each size of object:
# 17 page faults of 205. Where Go does not know that setting any more, this is empty.
SHORT     = $(shell GOEXPERIMENT=nogreenteagc $(GO) env GOEXPERIMENT 2>/dev/null)
LIBEXEC   = $(DESTDIR)$(PREFIX)/lib/mochila
# The packages where goroutines share state; of the engine and the spool, the tests that are about that.
RACE      = ./smtpd/... ./transport ./bridge/deliver ./internal/submit/... ./internal/seal ./spool/maildrop
FUZZTIME ?= 10s
SOAKTIME ?= 12h

.PHONY: build test race fuzz soak soak-all bench demo lint install deb clean

# Without the C library: the same bytes with a C compiler and without one, on every Linux of that architecture, and a start
# without the dynamic linker. internal/passwd asks getent for users that are not in /etc/passwd.
# The programs are copied, as everywhere they are installed: what the linker has just written lies in the page cache in single
# pages, and starts a fifth slower.
build: export CGO_ENABLED = 0
build:
	mkdir -p bin/.linked
	$(GO) build -trimpath -ldflags "$(LDFLAGS)" -o bin/.linked/ ./cmd/mochila
	GOEXPERIMENT=$(SHORT) $(GO) build -trimpath -ldflags "$(LDFLAGS) -X runtime.godebugDefault=$(BRIEF)" -o bin/.linked/ ./cmd/sendmail
	install -m 0755 bin/.linked/* bin/
	rm -r bin/.linked

# Real neighbours first: what cannot be installed here is named, and its tests say that they are skipped.
test:
	.ci/peers
	$(GO) vet ./...
	$(GO) test -timeout 30m ./...

race:
	$(GO) test -race -timeout 30m $(RACE)
	$(GO) test -race -timeout 30m -run 'TestStick|TestTCP|TestRelay' ./bridge
	$(GO) test -race -timeout 30m -run 'Apply|Held|Lease|Log|Map|Model|Session|Wake' ./spool

# Each fuzzer for a short while; FUZZTIME=10m for a night.
fuzz:
	.ci/fuzz $(FUZZTIME)

# The counts that are promised, on two lines side by side, seeds printed: 10^5 jobs, 200 neighbours with 1000 packets each;
# 500 kills under load, 10 GB of output, 5000 forks, 1 GiB cut twenty times. soak-all is every test at its full size.
SOAK = MOCHILA_SOAK=1 $(GO) test -count=1 -v -timeout $(SOAKTIME)
soak:
	@$(SOAK) -run '^(TestVoyage|TestManyNeighbours)$$' ./bridge & line=$$!; rc=0; \
	$(SOAK) -run '^(TestKillMaildir|TestKillSMTP|TestKillEitherSide|TestHandlerMisery|TestCutTransfer)$$' ./internal/e2e || rc=1; \
	wait $$line || rc=1; exit $$rc

soak-all:
	MOCHILA_SOAK=1 $(GO) test -count=1 -timeout $(SOAKTIME) ./...

# Against Postfix and NNCP where they are installed, on the disk of the temporary folder; as root, for Postfix.
# BENCHFLAGS=-quick tries whether it works, BENCHFLAGS='-tmp /srv' takes another disk.
bench: build
	$(GO) run ./contrib/bench $(BENCHFLAGS)

demo: build
	contrib/demo/demo.sh

lint:
	@bad=$$(gofmt -l $$(git ls-files -- '*.go')); if [ -n "$$bad" ]; then echo "gofmt -w" $$bad; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

# sendmail and its other names do not go to bin or sbin: making mochila the machine's sendmail is the administrator's
# decision (README.md).
install: build
	install -D -m 0755 bin/mochila $(DESTDIR)$(PREFIX)/bin/mochila
	ln -sf mochila $(DESTDIR)$(PREFIX)/bin/git-remote-mochila
	install -D -m 0755 bin/sendmail $(LIBEXEC)/sendmail
	for name in mailq newaliases rmail rsmtp; do ln -sf sendmail $(LIBEXEC)/$$name; done
	for name in uux rcsmtp rgsmtp rbsmtp; do ln -sf ../../bin/mochila $(LIBEXEC)/$$name; done
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	for page in docs/man/*.1; do gzip -9n <$$page >$(DESTDIR)$(PREFIX)/share/man/man1/$${page##*/}.gz; done
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/mochila completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/mochila
	bin/mochila completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_mochila
	bin/mochila completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/mochila.fish
	install -D -m 0644 contrib/systemd/mochila.service $(DESTDIR)$(PREFIX)/lib/systemd/system/mochila.service

# mochila, and mochila-mta which makes it the machine's sendmail. The same commit gives the same bytes.
DEBVERSION = $(shell git describe --tags --always 2>/dev/null | sed 's/^v//; s/^\([^0-9]\)/0~\1/; s/-/+/g' | grep . || echo 0~unknown)
DIST ?= $(CURDIR)/dist
deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
deb:
	rm -rf $(DIST)/stage
	mkdir -p $(DIST)/stage
	$(MAKE) install DESTDIR=$(DIST)/stage PREFIX=/usr
	install -D -m 0644 LICENSE $(DIST)/stage/usr/share/doc/mochila/copyright
	cp -r README.md docs $(DIST)/stage/usr/share/doc/mochila/
	rm -r $(DIST)/stage/usr/share/doc/mochila/docs/man
	mkdir $(DIST)/stage/usr/share/doc/mochila/contrib
	for d in contrib/*/; do test -e $$d/main.go || cp -r $$d $(DIST)/stage/usr/share/doc/mochila/contrib/; done
	rm -rf $(DIST)/stage/usr/share/doc/mochila/contrib/demo
	cd contrib/debian && $(GO) run . -stage $(DIST)/stage -out $(DIST) -version '$(DEBVERSION)' \
		-arch $$($(GO) env GOARCH) mochila.yaml mochila-mta.yaml

clean:
	rm -rf bin demo dist
