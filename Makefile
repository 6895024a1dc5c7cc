# The header needs no building.  This builds and runs what shows and tests it:
# make [all|demo|test|check|test-all|bench|install|clean] [CC=...] [BUILD=DIRECTORY, which may
# be anywhere, so the source tree may be read-only] [DEMOFLAGS=...] [PREFIX=...]
# [ONLY='SECTION or SCENARIO...' of the tests; "sh test/run.sh --help" names the sections].

CFLAGS = -O2 -g
PREFIX = /usr/local
WARN = -Wall -Wextra
BUILD = build

all: build-demo

demo: build-demo
	'$(BUILD)/demo' $(DEMOFLAGS)

# exec, so that it is run.sh that make tells of a signal.
test check test-all: build-contain build-demo build-deny build-scenarios
	@exec env CC='$(CC)' BUILD='$(BUILD)' sh test/run.sh $(if $(filter test-all,$@),--all) $(ONLY)

bench:
	@mkdir -p '$(BUILD)' && echo '*' >'$(BUILD)/.gitignore'
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o '$(BUILD)/bench' test/bench.c -pthread -lm $(LDLIBS)
	'$(BUILD)/bench' -o '$(BUILD)/bench.csv' -s '$(BUILD)/bench.svg' $(BENCHFLAGS)
	$(CC) -x c -Os -DASYNC_TEARDOWN_IMPLEMENTATION -c -o '$(BUILD)/size.o' async_teardown.h
	@echo 'With -Os, text, data and bss:'
	size '$(BUILD)/size.o'

install:
	mkdir -p '$(DESTDIR)$(PREFIX)/include'
	cp async_teardown.h '$(DESTDIR)$(PREFIX)/include/'

clean:
	rm -rf '$(BUILD)'

# musl brings no headers of the kernel.
KERNEL = $(if $(findstring musl,$(CC)),-idirafter /usr/include -idirafter /usr/include/$(shell $(CC) -print-multiarch))

# Always: the compiler and the flags may be others than last time.  No target is
# named by BUILD, for make cannot have a blank in one.
build-%: test/%.c async_teardown.h FORCE
	@mkdir -p '$(BUILD)' && echo '*' >'$(BUILD)/.gitignore'
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(KERNEL) $(LDFLAGS) -o '$(BUILD)/$*' $< -pthread $(LDLIBS)

FORCE:
.PHONY: all demo test check test-all bench install clean FORCE
