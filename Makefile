# The header needs no building.  This builds and runs what shows and tests it.

CFLAGS = -O2 -g
PREFIX = /usr/local
WARN = -Wall -Wextra
BUILD = build

all: $(BUILD)/demo

demo: $(BUILD)/demo
	$(BUILD)/demo $(DEMOFLAGS)

test: $(BUILD)/demo $(BUILD)/deny $(BUILD)/scenarios
	CC='$(CC)' BUILD='$(BUILD)' sh test/run.sh

bench: $(BUILD)/bench
	$(BUILD)/bench -o $(BUILD)/bench.csv -s $(BUILD)/bench.svg $(BENCHFLAGS)
	$(CC) -x c -Os -DASYNC_TEARDOWN_IMPLEMENTATION -c -o $(BUILD)/size.o async_teardown.h
	size $(BUILD)/size.o

install:
	mkdir -p '$(DESTDIR)$(PREFIX)/include'
	cp async_teardown.h '$(DESTDIR)$(PREFIX)/include/'

clean:
	rm -rf $(BUILD)

# Always: the compiler and the flags may be others than last time.
$(BUILD)/%: test/%.c async_teardown.h FORCE
	@mkdir -p $(BUILD) && echo '*' >$(BUILD)/.gitignore
	$(CC) $(WARN) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $< -pthread $(LDLIBS)

FORCE:
.PHONY: all demo test bench install clean FORCE
