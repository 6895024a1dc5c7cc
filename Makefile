# The header needs no building.  This builds and runs what shows and tests it:
# make [all|demo|test|check|bench|install|clean] [CC=...] [BUILD=DIRECTORY, which may be
# anywhere, so the source tree may be read-only] [DEMOFLAGS=...] [PREFIX=...].

CFLAGS = -O2 -g
PREFIX = /usr/local
WARN = -Wall -Wextra
BUILD = build

all: build-demo

demo: build-demo
	'$(BUILD)/demo' $(DEMOFLAGS)

# exec, so that it is run.sh that make tells of a signal.
test check: build-contain build-demo build-deny build-scenarios
	exec env CC='$(CC)' BUILD='$(BUILD)' sh test/run.sh

bench:
	@mkdir -p '$(BUILD)' && echo '*' >'$(BUILD)/.gitignore'
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o '$(BUILD)/bench' test/bench.c -pthread -lm $(LDLIBS)
	'$(BUILD)/bench' -o '$(BUILD)/bench.csv' -s '$(BUILD)/bench.svg' $(BENCHFLAGS)
	$(CC) -x c -Os -DASYNC_TEARDOWN_IMPLEMENTATION -c -o '$(BUILD)/size.o' async_teardown.h
	@echo 'With -Os, text, data and bss (goal with gcc 12: 8192 bytes):'
	size '$(BUILD)/size.o'

install:
	mkdir -p '$(DESTDIR)$(PREFIX)/include'
	cp async_teardown.h '$(DESTDIR)$(PREFIX)/include/'

clean:
	rm -rf '$(BUILD)'

# Always: the compiler and the flags may be others than last time.  No target is
# named by BUILD, for make cannot have a blank in one.
build-%: test/%.c async_teardown.h FORCE
	@mkdir -p '$(BUILD)' && echo '*' >'$(BUILD)/.gitignore'
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o '$(BUILD)/$*' $< -pthread $(LDLIBS)

FORCE:
.PHONY: all demo test check bench install clean FORCE
