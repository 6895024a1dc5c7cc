#!/bin/sh
# run.sh - all tests; "make test" builds what it needs and calls it
#
#	sh test/run.sh [SECTION...]	sections: build demo paths refused tools
#
# Environment: CC; BUILD (where the programs are); MUST_RUN=1 makes a tool that is
# missing a failure (not so what the machine lacks: root, KVM, control groups);
# RUNS, MIB and SLOW are for test/scenarios.c.
#
# Prints TAP, the plan first; the last line is "N passed, N failed", with
# ", N skipped" where some were.
# shellcheck disable=SC2030,SC2031	# what $(...) changes is meant to stay there
set -u
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.." || exit 2
CC=${CC:-cc} BUILD=${BUILD:-build} MUST_RUN=${MUST_RUN:-}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
tmp=$(mktemp -d "${TMPDIR:-/tmp}/async-teardown.XXXXXX") || exit 2
sections=${*:-build demo paths refused tools}
deadline=20		# seconds; how long to wait for what has to happen
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

have() { command -v "$1" >/dev/null 2>&1; }
ok() { echo "ok - $1"; }
not_ok() { echo "not ok - $1"; [ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/# /'; }
skip() { echo "ok - $1 # SKIP $2"; }
# For want of a tool; there, MUST_RUN says, it has to be.
skip_tool() { if [ "$MUST_RUN" ]; then not_ok "$1" "$2"; else skip "$1" "$2"; fi; }

# until_ok COMMAND...: waits for it to succeed, up to the deadline.
until_ok() {
	tries=$((deadline * 20))
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		sleep 0.05
	done
}

# --- build: the header under every compiler, language and flag --------------

warn='-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Wundef -Wcast-qual -Werror'
warn_c="$warn -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition"
warn_cxx="$warn -Wold-style-cast -Wmissing-declarations -Wzero-as-null-pointer-constant"
# -Wpadded says how a struct is laid out, which is the kernel's choice;
# -Wc++98-compat* that this is not C++98; -Wused-but-marked-unused that somebody
# does call what STATIC marks for those who do not.
warn_clang='-Weverything -Werror -Wno-padded -Wno-used-but-marked-unused'
warn_clangxx="$warn_clang -Wno-c++98-compat -Wno-c++98-compat-pedantic"

# A line is: how to run it (run, link, twofiles or fails), what to compile with.
matrix() {
	for cc in gcc clang; do
		for std in c99 gnu99 c11 gnu11 c17 gnu17; do
			echo "run $cc -std=$std $warn_c"
		done
		for opt in -O0 -O1 -O2 -O3 -Os '-O2 -flto' -fPIE '-fPIC -shared-libgcc' -fno-pie\ -no-pie \
			-fstack-protector-all -fsanitize=address -fsanitize=undefined \
			-fsanitize=thread -ftrivial-auto-var-init=pattern -pg -finstrument-functions -fcf-protection \
			-fprofile-arcs\ -ftest-coverage -D_GNU_SOURCE -DLAST -DUAPI \
			'-DLAST -D_GNU_SOURCE' '-DUAPI -D_GNU_SOURCE' -DSTATIC -static; do
			echo "run $cc -std=gnu11 $warn_c $opt"
		done
		echo "run $cc -O0 -fsanitize=address,undefined -fstack-protector-all"
		for opt in '' -flto -DSTATIC '-DSTATIC -flto'; do
			echo "twofiles $cc -std=c99 -O2 $warn_c $opt"
		done
		echo "run $cc $warn_c -U__linux__ -DEXPECT=ENOSYS -DLAST -D_GNU_SOURCE"
	done
	for cxx in g++ clang++; do
		for std in c++11 c++14 c++17 c++20 gnu++20; do
			echo "run $cxx -std=$std $warn_cxx"
		done
		for opt in -O0 -O3 '-O2 -flto' -DLAST -DUAPI -DSTATIC -fsanitize=address,undefined; do
			echo "run $cxx -std=c++17 $warn_cxx $opt"
		done
		echo "twofiles $cxx -std=c++11 -O2 $warn_cxx"
	done
	for std in c99 c11 c17; do
		echo "run clang -std=$std $warn_clang"
	done
	echo "run clang++ -std=c++11 $warn_clangxx"
	echo "run clang++ -std=c++20 $warn_clangxx"
	echo "run clang -std=gnu11 -fsanitize=memory"
	echo "run clang -std=gnu11 -fsanitize=safe-stack"
	echo "run clang -std=gnu11 -fsanitize=fuzzer-no-link,address"
	for opt in '' -static '-static -O0' '-O2 -flto' -DLAST -DSTATIC -D_GNU_SOURCE; do
		echo "run musl-gcc -std=c99 $warn_c $opt"
	done
	for arch in i686-linux-gnu aarch64-linux-gnu arm-linux-gnueabihf riscv64-linux-gnu \
		s390x-linux-gnu powerpc64le-linux-gnu mips64el-linux-gnuabi64; do
		for opt in -O0 -O2 -Os '-O0 -fPIE' '-O2 -fPIC -fno-omit-frame-pointer'; do
			echo "link $arch-gcc -std=c99 $warn_c -static $opt"
		done
	done
	for opt in '-marm -O0' '-marm -O2' '-mthumb -O0' '-mthumb -O2 -fno-omit-frame-pointer'; do
		echo "link arm-linux-gnueabihf-gcc -std=c99 $warn_c -static $opt"
	done
	echo "run i686-linux-gnu-gcc -std=c99 $warn_c -static -O2"
	echo "link aarch64-linux-gnu-gcc -std=c99 $warn_c -static -O2 -mbranch-protection=standard"
	# no libc for it in Debian 12; its kernel headers are the generic ones
	for opt in -O0 -O2; do
		echo "compile clang-16 --target=loongarch64-linux-gnu -Igeneric -I/usr/riscv64-linux-gnu/include -std=c99 $warn_c $opt"
	done
	echo "fails x86_64-linux-gnux32-gcc -std=c99"
}

# one_build NUMBER MODE COMPILER FLAGS...
one_build() {
	dir=$tmp/build.$1 mode=$2 compiler=$3
	shift 3
	name=$(echo "builds and runs: $compiler $*" | sed "s/ -W[^ ]*//g; s/  */ /g")
	case $mode in
	link) name="builds: ${name#*: }" ;;
	compile) name="compiles: ${name#*: }" ;;
	fails) name="is refused with a clear message: ${name#*: }" ;;
	esac
	if ! have "$compiler"; then
		skip_tool "$name" "no $compiler"
		return
	fi
	case $compiler in *++) c=cc ;; *) c=c ;; esac
	mkdir "$dir" && cp async_teardown.h "$dir" && cp test/drop_in.c "$dir/drop_in.$c" && cd "$dir" || return
	# What the machine's compiler cannot do at all is not the header's matter.
	echo 'int main(void) { return 0; }' >hello.$c
	# shellcheck disable=SC2086
	if [ "$mode" != compile ] && ! { "$compiler" "$@" -o hello hello.$c && { [ "$mode" != run ] || ./hello; }; } >log 2>&1; then
		skip_tool "$name" "$compiler cannot do that here: $(head -n 1 log)"
		return
	fi
	case $mode in
	run) "$compiler" -I. "$@" -o drop_in drop_in.$c >log 2>&1 && ./drop_in >>log 2>&1 ;;
	link) "$compiler" -I. "$@" -o drop_in drop_in.$c >log 2>&1 ;;
	compile)
		mkdir -p generic/sys
		echo '#include <asm/errno.h>' >generic/errno.h
		echo '#include <asm/unistd.h>' >generic/sys/syscall.h
		"$compiler" -I. "$@" -c -o drop_in.o drop_in.$c >log 2>&1 ;;
	twofiles)
		case " $* " in	# STATIC: each has an implementation of its own
		*' -DSTATIC '*) user='-DPART=2 -DASYNC_TEARDOWN_IMPLEMENTATION' ;;
		*) user=-DPART=2 ;;
		esac
		# shellcheck disable=SC2086
		"$compiler" -I. "$@" -DPART=1 -c -o part1.o drop_in.$c >log 2>&1 &&
		"$compiler" -I. "$@" $user -c -o part2.o drop_in.$c >>log 2>&1 &&
		"$compiler" "$@" -o drop_in part1.o part2.o >>log 2>&1 &&
		./drop_in >>log 2>&1 ;;
	fails)
		! "$compiler" -I. "$@" -c -o drop_in.o drop_in.$c >log 2>&1 &&
		grep -q '#error.*async_teardown.h' log && : >log ;;
	esac
	status=$?
	if [ $status -eq 0 ] && [ ! -s log ]; then ok "$name"; else not_ok "$name" "$(cat log)"; fi
	cd "$tmp" && rm -rf "$dir"
}

section_build() {
	cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
	lane=0
	while [ $lane -lt "$cores" ]; do
		matrix | awk -v n="$cores" -v l=$lane 'NR % n == l' | {
			i=$lane
			while read -r line; do
				# shellcheck disable=SC2086
				(one_build $i $line) </dev/null
				i=$((i + cores))
			done
		} >"$tmp/lane.$lane" &
		lane=$((lane + 1))
	done
	wait
	cat "$tmp"/lane.*

	name='private to the implementation: it needs no symbol of libc'
	printf '#define ASYNC_TEARDOWN_IMPLEMENTATION\n#include "async_teardown.h"\n' >"$tmp/alone.c"
	bad=''
	for opt in -O0 -O1 -O2 -O3 -Os; do
		$CC -I. $opt -c -o "$tmp/alone.o" "$tmp/alone.c" || bad="$bad $opt"
		bad=$bad$(nm -u "$tmp/alone.o" | grep -v _GLOBAL_OFFSET_TABLE_)
	done
	if ! have nm; then skip_tool "$name" 'no nm'
	elif [ "$bad" ]; then not_ok "$name" "$bad"
	else ok "$name"; fi

	name='private macros are undefined at the end'
	report "$name" "$(for u in -U__mips__ -U__linux__; do $CC -I. $u -dM -E "$tmp/alone.c" >"$tmp/out" || echo "$CC fails"
		grep '#define ATD_' "$tmp/out"; done)"

	name='text, data, bss and stack: at most 8 KiB at -Os'
	$CC -I. -Os -c -o "$tmp/alone.o" "$tmp/alone.c"
	bytes=$(size "$tmp/alone.o" | awk 'NR == 2 { print $4 }')
	if ! have size; then skip_tool "$name" 'no size'
	elif [ "${bytes:-99999}" -le 8192 ]; then ok "$name"
	else not_ok "$name" "$bytes bytes"; fi
}
count_build() { echo $(($(matrix | wc -l) + 3)); }

# --- demo: the program as a person runs it, by order of events --------------

state() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }
is_in() { [ "$(state "$1")" = "$2" ]; }
is_gone() { case $(state "$1") in '' | Z) ;; *) return 1 ;; esac; }	# PID 1 may reap late
rss_mib() { awk '/^RssAnon/ { print int($2 / 1024) }' "/proc/$1/status" 2>/dev/null; }
said() { grep -q '^vmm=' "$tmp/said"; }

# However this shell ends, no helper is left stopped.  The VMM sees the end of
# its stdin, and ends.
continue_helper() {
	trap 'kill -CONT "${helper#0}" 2>/dev/null' EXIT
	trap 'exit 1' HUP INT TERM
}

# demo_start ARGUMENTS...: sets vmm and helper; its stdin is descriptor 9.
demo_start() {
	rm -f "$tmp/said" "$tmp/hold"
	mkfifo "$tmp/hold"
	: >"$tmp/said"
	"$BUILD/demo" -c -m 128 "$@" <"$tmp/hold" >"$tmp/said" 2>"$tmp/err" &
	exec 9>"$tmp/hold"
	until_ok said || return 1
	vmm=$(sed -n 's/^vmm=\([0-9]*\) .*/\1/p' "$tmp/said")
	helper=$(sed -n 's/.* helper=\([0-9]*\)$/\1/p' "$tmp/said")
	continue_helper
}

# demo_ends HOW WANTED: reaped with the helper stopped, and then the helper goes
demo_ends() {
	case $1 in exit | abort | segv) demo_start -e "$1" ;; *) demo_start ;; esac || { echo 'no start'; return; }
	kill -STOP "$helper"
	until_ok is_in "$helper" T || echo 'the helper does not stop'
	case $1 in TERM | KILL) kill -"$1" "$vmm" ;; *) echo >&9 ;; esac
	until_ok is_gone "$vmm" || { echo 'the VMM stays'; kill -KILL "$helper" "$vmm"; }
	wait "$vmm" 2>/dev/null
	got=$?
	exec 9>&-
	[ $got -eq "$2" ] || echo "status $got, not $2"
	is_in "$helper" T || echo 'the helper has not outlived it'
	[ "$(rss_mib "$helper")" -ge 128 ] || echo "the helper has $(rss_mib "$helper") MiB"
	kill -CONT "$helper"
	until_ok is_gone "$helper" || echo 'the helper stays'
}

fails_with() {	# STATUS PATTERN ARGUMENTS...
	want=$1 pattern=$2
	shift 2
	"$BUILD/demo" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	got=$?
	[ $got -eq "$want" ] || echo "demo $*: status $got, not $want"
	grep -q "$pattern" "$tmp/err" || echo "demo $*: no '$pattern' on stderr"
	[ ! -s "$tmp/out" ] || echo "demo $*: output on stdout"
}

report() { if [ -z "$2" ]; then ok "$1"; else not_ok "$1" "$2"; fi; }

section_demo() {
	for how in 'exit 0' 'abort 134' 'segv 139' 'TERM 143' 'KILL 137'; do
		# shellcheck disable=SC2086
		report "demo: ends by ${how% *}: reaped while its helper is stopped; then the helper goes" \
			"$(demo_ends $how)"
	done

	rm -f "$tmp/hold" && mkfifo "$tmp/pipe" "$tmp/hold"
	report 'demo: a reader of its stdout sees the end while the helper lives' "$(
		: >"$tmp/said"
		"$BUILD/demo" -c -m 16 <"$tmp/hold" >"$tmp/pipe" &
		vmm=$!
		exec 9>"$tmp/hold"
		{ cat >"$tmp/said"; : >"$tmp/eof"; } <"$tmp/pipe" &
		until_ok said || echo 'it says nothing'
		helper=$(sed -n 's/.* helper=\([0-9]*\)$/\1/p' "$tmp/said")
		continue_helper
		kill -STOP "$helper"
		until_ok is_in "$helper" T
		kill -KILL "$vmm"
		until_ok test -e "$tmp/eof" || echo 'no end of file'
		is_in "$helper" T || echo 'the helper was gone'
		kill -CONT "$helper"
		until_ok is_gone "$helper" || echo 'the helper stays'
	)"

	report 'demo: without the helper it frees its memory itself' "$(
		demo_start -p
		[ "$helper" = 0 ] || echo "helper=$helper"
		exec 9>&-
		wait "$vmm" || echo "status $?"
	)"

	report 'demo: both runs, a table' "$(
		"$BUILD/demo" -m 64 >"$tmp/out" 2>"$tmp/err" </dev/null || echo "status $?"
		[ "$(grep -c ' ms ' "$tmp/out")" = 4 ] || echo 'not four results'
		[ ! -s "$tmp/err" ] || cat "$tmp/err"
	)"

	report 'demo: nonsense is a usage message and status 2' "$(
		for m in 0 -1 1x x '' 1.5 ' 1' +1 99999999999999999999; do
			fails_with 2 '^usage:' -m "$m"
		done
		fails_with 2 '^usage:' -x
		fails_with 2 '^usage:' -m
		fails_with 2 '^usage:' -c -e dance
		fails_with 2 '^usage:' something
	)"
	report 'demo: more memory than there is: says so, status 1' \
		"$(fails_with 1 'MiB is too much' -m 999999999; fails_with 1 'MiB is too much' -c -m 999999999)"
}
count_demo() { echo 10; }

# --- paths: every scenario, as new kernels do it and as older ones have to ---

section_paths() {
	"$BUILD/scenarios" >"$tmp/path.1" 2>&1 &
	"$BUILD/deny" ENOSYS pidfd_open,close_range "$BUILD/scenarios" >"$tmp/path.2" 2>&1 &
	wait
	RUNS=20 "$BUILD/deny" ENOSYS pidfd_open "$BUILD/scenarios" >"$tmp/path.3" 2>&1 &
	RUNS=20 "$BUILD/deny" EPERM close_range "$BUILD/scenarios" >"$tmp/path.4" 2>&1 &
	wait
	sed 's/ok - /ok - this kernel: /' "$tmp/path.1"
	sed 's/ok - /ok - no pidfd_open, no close_range: /' "$tmp/path.2"
	sed 's/ok - /ok - no pidfd_open: /' "$tmp/path.3"
	sed 's/ok - /ok - close_range refused: /' "$tmp/path.4"
}
count_paths() { echo $((4 * $("$BUILD/scenarios" -n))); }

# --- refused: what start needs and does not get ------------------------------

refusals() {	# the error to expect, the error to give, the calls
	cat <<-END
	1 EPERM setsid
	1 EPERM chdir
	38 ENOSYS prctl
	1 EPERM prctl:15
	1 EPERM prctl:38
	22 EINVAL prctl:22
	1 EPERM capget
	1 EPERM capset
	1 EPERM prlimit64
	1 EPERM ppoll
	38 ENOSYS wait4
	1 EPERM rt_sigprocmask
	1 EPERM clone
	38 ENOSYS close_range,unshare
	1 EPERM close_range,unshare
	1 EPERM close_range,close:0
	1 EPERM pidfd_open,prctl:1
	1 EPERM pidfd_open,rt_sigtimedwait
	1 KILL setsid
	1 KILL prctl:22
	END
}

section_refused() {
	refusals | while read -r want give calls; do
		report "refused: $calls ($give): start says so, nothing else changes" "$(
			"$BUILD/deny" "$give" "$calls" "$BUILD/scenarios" --refused "$want" 2>&1 </dev/null ||
				echo "status $?"
		)"
	done
}
count_refused() { refusals | wc -l; }

# --- tools: what other programs say -------------------------------------------

section_tools() {
	name='strace: the whole life of a helper, and of a start, in the listed calls'
	if ! have strace || ! strace -o /dev/null true 2>/dev/null; then skip_tool "$name" 'no strace, or no ptrace'
	else
		report "$name" "$(
			for deny in '' "$BUILD/deny ENOSYS pidfd_open,close_range"; do
				# shellcheck disable=SC2086
				$deny timeout 60 strace -f -qq -o "$tmp/trace" "$BUILD/demo" -c -m 16 >"$tmp/said" </dev/null 2>"$tmp/err"
				helper=$(sed -n 's/.* helper=\([0-9]*\)$/\1/p' "$tmp/said")
				sed -n "s/^$helper  *//p" "$tmp/trace" | grep -v '^+++\|^<\.\.\.\|^---' | sed 's/(.*//' >"$tmp/calls"
				[ -s "$tmp/calls" ] || echo 'nothing traced'
				grep -vx 'setsid\|close_range\|unshare\|openat\|getdents64\|close\|chdir\|prctl\|pidfd_open\|rt_sigtimedwait\|ppoll\|getppid\|rt_sigprocmask\|capget\|capset\|prlimit64\|exit_group\|kill' "$tmp/calls"
				# after capset, no_new_privs and the filter itself
				sed '1,/^capset$/d' "$tmp/calls" | sed 1,2d |
					grep -vx 'ppoll\|rt_sigtimedwait\|getppid\|kill\|exit_group'
				# a pause between the end of the wait and the exit
				tail -n 3 "$tmp/calls" | tr '\n' ' ' | grep -qx '\(ppoll\|kill\) ppoll exit_group ' ||
					echo "ends in $(tail -n 3 "$tmp/calls")"
			done
		)"
	fi

	name='shellcheck: the shell scripts'
	if ! have shellcheck; then skip_tool "$name" 'no shellcheck'
	else report "$name" "$(shellcheck test/run.sh .ci/run 2>&1)"; fi

	for shell in dash 'busybox sh'; do
		name="$shell runs the tests of the demo"
		if ! have "${shell% *}"; then skip_tool "$name" "no ${shell% *}"
		else
			# shellcheck disable=SC2086
			report "$name" "$(
				CC=$CC BUILD=$BUILD $shell test/run.sh demo >"$tmp/out" 2>&1 || grep -v '^ok' "$tmp/out"
			)"
		fi
	done

	name='make: install, musl, a copy alone in a directory'
	report "$name" "$(
		exec 2>&1
		make -s install DESTDIR="$tmp/root" PREFIX=/usr MAKEFLAGS=
		cmp async_teardown.h "$tmp/root/usr/include/async_teardown.h"
		if have musl-gcc; then
			make -s CC=musl-gcc LDFLAGS=-static BUILD="$tmp/musl" DEMOFLAGS='-m 16' demo MAKEFLAGS= >"$tmp/out" || cat "$tmp/out"
		elif [ "$MUST_RUN" ]; then echo 'no musl-gcc'; fi
	)"
}
count_tools() { echo 5; }

# --- all of it ------------------------------------------------------------------

plan=0
for s in $sections; do
	case $s in build | demo | paths | refused | tools) ;; *) echo "run.sh: no section $s" >&2; exit 2 ;; esac
	plan=$((plan + $("count_$s")))
done
echo "1..$plan"
for s in $sections; do
	"section_$s"
done | awk -v plan="$plan" '
	/^ok - .* # SKIP/ { skipped++ }
	/^ok - / && !/ # SKIP/ { passed++ }
	/^not ok - / { failed++ }
	/^(not )?ok - / { n++; sub(/ok - /, "ok " n " - ") }
	{ print; fflush() }
	END {
		if (n != plan) {
			print "Bail out! planned " plan " tests, saw " n + 0
			failed += plan > n ? plan - n : 1
		}
		printf "%d passed, %d failed", passed, failed
		if (skipped) printf ", %d skipped", skipped
		print ""
		exit failed > 0
	}'
