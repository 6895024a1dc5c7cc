#!/bin/sh
# run.sh - all tests; "make test" builds what it needs and calls it
#
#	sh test/run.sh [SECTION...]	sections: build demo release paths refused tools
#
# Environment: CC; BUILD (where the programs are); MUST_RUN=1 makes a tool that is
# missing a failure (not so what the machine lacks: root, KVM, control groups; nor
# what only newer compilers know); RUNS, MIB and SLOW are for test/scenarios.c.
#
# Prints TAP, the plan first; the last line is "N passed, N failed", with
# ", N skipped" where some were.  What was skipped and what failed stands before it.
#
# A section is a name in all_sections and two functions: section_NAME prints the results,
# each a line that begins with "ok - " or "not ok - "; count_NAME prints how many there
# are, and how many seconds they take on two CPUs.  What it goes through may be a table,
# test/NAME.table.
# shellcheck disable=SC2030,SC2031	# what $(...) changes is meant to stay there
set -u
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.." || exit 2
all_sections='build demo release paths refused tools'
CC=${CC:-cc} BUILD=${BUILD:-build} MUST_RUN=${MUST_RUN:-}
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
deadline=120		# seconds; for what hangs, not for what is slow

sections=${*:-$all_sections}
for s in $sections; do
	case " $all_sections " in *" $s "*) ;; *) echo "run.sh: no section $s" >&2; exit 2 ;; esac
done
# The same shell does the rest, under test/contain.c: however it ends, no process and no
# file of it stays.
if [ "${CONTAINED:-}" != $PPID ]; then
	[ -x "$BUILD/contain" ] || { echo "run.sh: no $BUILD/contain; \"make test\" builds what this needs" >&2; exit 2; }
	export CC BUILD MUST_RUN
	exec "$BUILD/contain" "$(readlink /proc/$$/exe)" test/run.sh "$@"
fi
tmp=$TMPDIR

have() { command -v "$1" >/dev/null 2>&1; }
ok() { echo "ok - $1"; }
not_ok() { echo "not ok - $1"; [ -z "${2:-}" ] || printf '%s\n' "$2" | sed 's/^/# /'; }
skip() { echo "ok - $1 # SKIP $2"; }
# For want of a tool; there, MUST_RUN says, it has to be.
skip_tool() { if [ "$MUST_RUN" ]; then not_ok "$1" "$2"; else skip "$1" "$2"; fi; }

# report NAME OUTPUT: a test says what is wrong, and at its end this word.  To say
# nothing may mean that nothing was tried.
the_end='to the end'
report() {
	case $2 in
	"$the_end") ok "$1" ;;
	*"$the_end") not_ok "$1" "${2%?"$the_end"}" ;;
	*) not_ok "$1" "$(printf '%s\n' "$2" "not run $the_end")" ;;
	esac
}

# until_ok COMMAND...: waits for it to succeed, up to the deadline.
until_ok() {
	tries=$((deadline * 20))
	until "$@"; do
		tries=$((tries - 1))
		[ $tries -gt 0 ] || return 1
		sleep 0.05
	done
}

# --- the tables --------------------------------------------------------------

# versions NAME: each NAME-N that is installed, and not NAME by another name
versions() {
	default=$("$1" -dumpversion 2>/dev/null)
	(
		IFS=:
		for dir in $PATH; do
			for file in "$dir/$1"-[0-9] "$dir/$1"-[0-9][0-9]; do
				[ ! -x "$file" ] || echo "${file##*-}"
			done
		done
	) | sort -nu | while read -r n; do
		[ "$("$1-$n" -dumpversion)" = "$default" ] || echo "$1-$n"
	done
}

# newest COMPILER...
newest() {
	for cc; do
		echo "$("$cc" -dumpversion 2>/dev/null) $cc"
	done | sort -n | sed -n '$s/.* //p'
}

# rows SECTION: its table's lines, less what is for the reader
rows() { sed 's/^[[:space:]]*#.*//; /^[[:space:]]*$/d' "test/$1.table"; }

# builds SECTION: its table with a line for each compiler, and without variables; see
# build.table
builds() {
	gccs=$(versions gcc) gxxs=$(versions g++) clangs=$(versions clang) clangxxs=$(versions clang++)
	# shellcheck disable=SC2086
	newest=$(newest clang $clangs) newestxx=$(newest clang++ $clangxxs)
	rows "$1" | while read -r first compilers rest; do
		if [ "$compilers" = = ]; then
			eval "$first=\"$rest\""
			continue
		fi
		eval "compilers=\"$compilers\" rest=\"$rest\""
		for cc in $(echo "$compilers" | tr , ' '); do
			case $cc in
			gcc-N) cc=$gccs ;;
			g++-N) cc=$gxxs ;;
			clang-N) cc=$clangs ;;
			clang++-N) cc=$clangxxs ;;
			clang-newest) cc=$newest ;;
			clang++-newest) cc=$newestxx ;;
			esac
			for one in $cc; do
				echo "$first $one $rest"
			done
		done
	done
}

# in_lanes FILE COMMAND: runs COMMAND NUMBER WORD... for each line of the file, as many
# at once as there are CPUs.  What one prints stays together, however long it is.
in_lanes() {
	lanes=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
	lane=0
	while [ $lane -lt "$lanes" ]; do
		(
			i=$lane
			awk -v n="$lanes" -v l="$lane" 'NR % n == l' "$1" | while read -r line; do
				# shellcheck disable=SC2086
				("$2" $i $line) >"$tmp/result.$i" 2>&1 </dev/null
				echo "$tmp/result.$i"
				i=$((i + lanes))
			done
		) &
		lane=$((lane + 1))
	done | while IFS= read -r result; do
		cat "$result"
		rm "$result"
	done
}

# --- build: the header under every compiler, language and flag --------------

# symbols COMPILER FLAGS...: prints those that are not the linker's own.  For ppc64
# it makes the functions that save and restore registers, too; and gcc's atomics for
# aarch64 are in its libgcc.a.
symbols() {
	nm=$("$1" -print-prog-name=llvm-nm)	# reads all machines' files
	have "$nm" || nm=$("$1" -print-prog-name=nm)
	have "$nm" || echo "no nm for $1"
	for opt in -O0 -O1 -O2 -O3 -Os; do
		"$@" -I. $opt -c -o alone.o "alone.$c" || continue
		"$nm" -u alone.o >undefined || echo "$nm fails"
		sed 's/^ *[Uvw] *//' undefined |
			grep -vxE '_GLOBAL_OFFSET_TABLE_|\.TOC\.|_gp_disp|__ehdr_start|_end|_(save|rest)gpr[01]_[0-9]+|__aarch64_(cas|ldadd|swp)[48]_[a-z]+|' | sed "s/^/$opt: /"
	done
}

# vectors COMPILER FLAGS...: prints what is read of vector registers after a system call
# that was written before it.
no_vectors='no vector register is used at all'
vectors() {
	used=''
	for opt in -O1 -O2 -O3 -Os; do
		"$@" -I. $opt -fno-jump-tables -S -o alone.s "alone.$c" || continue
		awk -f vectors.awk alone.s >stale && used=1
		sed "s/^/$opt: /" stale
	done
	[ "$used" ] || echo "$no_vectors"
}

# one_build NUMBER MODE COMPILER FLAGS...
one_build() {
	dir=$tmp/build.$1 mode=${2%\?} lacks=skip_tool compiler=$3
	[ "$mode" = "$2" ] || lacks=skip
	shift 3
	name=$(echo "$compiler $*" | sed 's/ -W[a-km-z][^ ]*//g; s/  */ /g; s/ $//')
	case $mode in
	link) name="builds: $name" ;;
	compile) name="compiles: $name" ;;
	symbols) name="needs no symbol of libc: $name" ;;
	vectors) name="keeps no vector in a register over a system call: $name" ;;
	fails) name="is refused with a clear message: $name" ;;
	*) name="builds and runs: $name" ;;
	esac
	if ! have "$compiler"; then
		skip_tool "$name" "no $compiler"
		return
	fi
	case $compiler in *++*) c=cc ;; *) c=c ;; esac
	mkdir "$dir" && cp async_teardown.h "$dir" && cp test/drop_in.c "$dir/drop_in.$c" && cd "$dir" || return
	mkdir -p generic/sys
	echo '#include <asm/errno.h>' >generic/errno.h
	echo '#include <asm/unistd.h>' >generic/sys/syscall.h
	printf '#define ASYNC_TEARDOWN_IMPLEMENTATION\n#include "async_teardown.h"\n' >alone.$c
	printf '#include <errno.h>\n#include <sys/syscall.h>\nint main(void) { return 0; }\n' >hello.$c
	case $mode in
	run) "$compiler" -I. "$@" -o drop_in drop_in.$c >log 2>&1 && ./drop_in >>log 2>&1 ;;
	link) "$compiler" -I. "$@" -o drop_in drop_in.$c >log 2>&1 ;;
	compile) "$compiler" -I. "$@" -c -o drop_in.o drop_in.$c >log 2>&1 ;;
	symbols) symbols "$compiler" "$@" >log 2>&1 ;;
	vectors) cp "$OLDPWD/test/vectors.awk" . && vectors "$compiler" "$@" >log 2>&1 ;;
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
		grep -q 'error:.* "*async_teardown\.h: ' log && : >log ;;
	esac
	status=$?
	if [ $status -eq 0 ] && [ ! -s log ]; then
		ok "$name"
	# What the machine's compiler cannot do at all is not the header's matter.
	elif ! case $mode in
		run | twofiles) "$compiler" "$@" -o hello hello.$c && ./hello ;;
		link) "$compiler" "$@" -o hello hello.$c ;;
		*) "$compiler" "$@" -c -o hello.o hello.$c ;;
	esac >hello.log 2>&1; then
		$lacks "$name" "$compiler cannot do that here: $(head -n 1 hello.log)"
	elif [ "$mode" = vectors ] && grep -qx "$no_vectors" log; then
		$lacks "$name" "$compiler uses no vector registers"
	else
		not_ok "$name" "$(cat log)"
	fi
	cd "$tmp" && rm -rf "$dir"
}

section_build() {
	in_lanes "$tmp/build" one_build

	printf '#define ASYNC_TEARDOWN_IMPLEMENTATION\n#include "async_teardown.h"\n' >"$tmp/alone.c"
	report 'private macros are undefined at the end' "$(
		for u in -U__mips__ -U__linux__; do
			$CC -I. $u -dM -E "$tmp/alone.c" >"$tmp/out" || echo "$CC fails"
			grep '#define ATD_' "$tmp/out"
		done
		echo "$the_end"
	)"
}
count_build() {
	builds build >"$tmp/build"
	echo $(($(wc -l <"$tmp/build") + 1)) 200
}

# --- demo: the program as a person runs it, by order of events --------------

state() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }
is_in() { [ "$(state "$1")" = "$2" ]; }
is_gone() { case $(state "$1") in '' | Z) ;; *) return 1 ;; esac; }	# PID 1 may reap late
rss_mib() { awk '/^RssAnon/ { print int($2 / 1024) }' "/proc/$1/status" 2>/dev/null; }
said() { grep -q '^vmm=' "$tmp/said"; }
said_or_gone() { said || is_gone "$1"; }

# send SIGNAL PID NAME: if there is such a process, and by that name; PIDs are used
# again, and some numbers mean many processes.
send() {
	if [ "$2" ] && [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "$3" ]; then
		kill -"$1" "$2"
	else
		echo "for SIG$1: PID '$2' is not $3"
	fi
}

# started: waits until the VMM has said so, and sets helper
started() {
	until_ok said_or_gone "$vmm"
	helper=$(sed -n "s/^vmm=$vmm helper=\([0-9]*\)$/\1/p" "$tmp/said")
	[ "$helper" ] || { echo 'no start:'; cat "$tmp/said" "$tmp/err"; return 1; }
}

# demo_start ARGUMENTS...: sets vmm and helper; its stdin is descriptor 9.
demo_start() {
	rm -f "$tmp/said" "$tmp/hold"
	mkfifo "$tmp/hold"
	: >"$tmp/said"
	"$BUILD/demo" -c -m 128 "$@" <"$tmp/hold" >"$tmp/said" 2>"$tmp/err" &
	vmm=$!
	exec 9>"$tmp/hold"
	started
}

# demo_ends HOW WANTED: reaped with the helper stopped, and then the helper goes
demo_ends() {
	case $1 in exit | abort | segv) demo_start -e "$1" ;; *) demo_start ;; esac || return
	send STOP "$helper" "cleanup/$vmm"
	until_ok is_in "$helper" T || echo 'the helper does not stop'
	case $1 in TERM | KILL) send "$1" $vmm demo ;; *) echo >&9 ;; esac
	until_ok is_gone $vmm || { echo 'the VMM stays'; send KILL $vmm demo; }
	wait $vmm 2>/dev/null
	got=$?
	exec 9>&-
	[ $got -eq "$2" ] || echo "status $got, not $2"
	is_in "$helper" T || echo 'the helper has not outlived it'
	[ "$(rss_mib "$helper")" -ge 128 ] || echo "the helper has $(rss_mib "$helper") MiB"
	send CONT "$helper" "cleanup/$vmm"
	until_ok is_gone "$helper" || echo 'the helper stays'
	echo "$the_end"
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

section_demo() {
	for how in 'exit 0' 'abort 134' 'segv 139' 'TERM 143' 'KILL 137'; do
		# shellcheck disable=SC2086
		report "demo: ends by ${how% *}: reaped while its helper is stopped; then the helper goes" \
			"$(demo_ends $how)"
	done

	rm -f "$tmp/hold" && mkfifo "$tmp/pipe" "$tmp/hold"
	report 'demo: a reader of its stdout sees the end while the helper lives' "$(
		: >"$tmp/said"
		{ cat >"$tmp/said"; : >"$tmp/eof"; } <"$tmp/pipe" &
		"$BUILD/demo" -c -m 16 <"$tmp/hold" >"$tmp/pipe" 2>"$tmp/err" &
		vmm=$!
		exec 9>"$tmp/hold"
		started || exit
		send STOP "$helper" "cleanup/$vmm"
		until_ok is_in "$helper" T || echo 'the helper does not stop'
		send KILL $vmm demo
		until_ok test -e "$tmp/eof" || echo 'no end of file'
		is_in "$helper" T || echo 'the helper was gone'
		send CONT "$helper" "cleanup/$vmm"
		until_ok is_gone "$helper" || echo 'the helper stays'
		echo "$the_end"
	)"

	report 'demo: without the helper it frees its memory itself' "$(
		demo_start -p || exit
		[ "$helper" = 0 ] || echo "helper=$helper"
		exec 9>&-
		wait $vmm || echo "status $?"
		echo "$the_end"
	)"

	report 'demo: three runs, a table' "$(
		"$BUILD/demo" -m 64 >"$tmp/out" 2>"$tmp/err" </dev/null || echo "status $?"
		[ "$(grep -c ' ms ' "$tmp/out")" = 10 ] || echo 'not ten results'
		[ ! -s "$tmp/err" ] || cat "$tmp/err"
		echo "$the_end"
	)"

	report 'demo: nonsense is a usage message and status 2' "$(
		for m in 0 -1 1x x '' 1.5 ' 1' +1 99999999999999999999; do
			fails_with 2 '^usage:' -m "$m"
		done
		fails_with 2 '^usage:' -x
		fails_with 2 '^usage:' -m
		fails_with 2 '^usage:' -c -e dance
		fails_with 2 '^usage:' something
		echo "$the_end"
	)"
	report 'demo: more memory than there is: says so, status 1' "$(
		fails_with 1 'MiB is too much' -m 999999999
		fails_with 1 'MiB is too much' -c -m 999999999
		echo "$the_end"
	)"
}
count_demo() { echo 10 5; }

# --- release: the image that the helper must not unmap, however it is built ---

# verdict TEST FILE: what the scenarios' output says of it, "not run" if nothing
verdict() {
	sed -n "s/^not ok - $1: .*/failed/p; t
		s/^ok - $1: .* # SKIP /skipped: /p; t
		s/^ok - $1: .*/ok/p" "$2" | grep . || echo 'not run'
}

# shows_early: whether the scenarios in ./log show that, as far as this machine can.  A
# program that is linked in the usual way is the measure.
shows_early() {
	for test in release_first threads; do
		got=$(verdict $test log) usual=$(verdict $test "$tmp/usual")
		case $got in
		ok | "$usual") ;;
		*) echo "$test: $got, but in the usual program: $usual"; return 1 ;;
		esac
	done
}

# stays_late: that release_first fails, and by finding no RAM where the rest is free
stays_late() {
	case $(verdict release_first "$tmp/usual") in 'skipped: no userfaultfd'*) return ;; esac
	./scenarios release_first >late 2>&1 </dev/null
	grep -q ': rss_kib(helper) >= ' late || { cat late; return 1; }
}

# change FILE HOW: after it has been linked
change() {
	case $2 in
	strip) strip "$1" ;;
	rpath) patchelf --set-rpath /nowhere "$1" ;;
	interpreter) patchelf --set-interpreter "$(patchelf --print-interpreter "$1")" "$1" ;;
	esac
}

# one_way NUMBER HOW COMPILER TEST,TEST... FLAGS...
one_way() {
	dir=$tmp/way.$1 how=${2%+*} changed='' compiler=$3 names=$(echo "$4" | tr , ' ') sources=$PWD/test/scenarios.c
	case $2 in *+*) changed=${2#*+} ;; esac
	name=$(shift 4; echo "$compiler $*" | sed 's/ -idirafter [^ ]*//g; s/ $//')
	case $how in
	late) name="not released early, for want of an image: $name" ;;
	second*) name="two copies of the header: $2: $name" ;;
	*) name="released early, and never its own image: $2: $name" ;;
	esac
	shift 4
	set -- "$compiler" "$@"
	if ! have "$1"; then skip_tool "$name" "no $1"; return; fi
	case $changed in rpath | interpreter) tool=patchelf ;; *) tool=$changed ;; esac
	if [ "$tool" ] && ! have "$tool"; then skip_tool "$name" "no $tool"; return; fi
	header=$PWD
	mkdir "$dir" && cd "$dir" || return
	cat >second.c <<-END
		#define ASYNC_TEARDOWN_IMPLEMENTATION
		#define ASYNC_TEARDOWN_STATIC
		#include "async_teardown.h"
		extern int second_start(void *, unsigned long);
		int second_start(void *start, unsigned long size)
		{
			if (start)
				async_teardown_ram(start, size);
			return async_teardown_start();
		}
	END
	cat >load.c <<-END
		#include <dlfcn.h>
		#include <stdio.h>
		int main(int argc, char **argv)
		{
			void *lib = dlopen("./scenarios.so", RTLD_NOW);
			int (*run)(int, char **);
			if (!lib || !(*(void **)&run = dlsym(lib, "main")))
				return puts(dlerror()), 1;
			return run(argc, argv);
		}
	END
	if ! case $how in
	program | late) "$@" -o scenarios "$sources" -pthread && change scenarios "$changed" ;;
	library)
		"$@" -shared -fPIC -o scenarios.so "$sources" -pthread && change scenarios.so "$changed" &&
			"$@" -o scenarios load.c -ldl -pthread ;;
	second) "$@" -I"$header" -o scenarios "$sources" second.c -pthread ;;
	second-library)
		"$@" -I"$header" -shared -fPIC -o libsecond.so second.c &&
			"$@" -o scenarios "$sources" -pthread -L. -Wl,--no-as-needed -lsecond -Wl,-rpath,. ;;
	*) echo "there is no such way"; false ;;
	esac >built 2>&1; then
		skip_tool "$name" "cannot be built here: $(head -n 1 built)"
	else
		# shellcheck disable=SC2086
		if RUNS=3 ./scenarios $names >log 2>&1 </dev/null && grep -q '^ok' log && case $how in
			program | library) shows_early >>log ;;
			late) stays_late >>log ;;
		esac; then ok "$name"
		else not_ok "$name" "$(cat log)"; fi
	fi
	cd "$header" && rm -rf "$dir"
}

section_release() {
	"$BUILD/scenarios" release_first threads >"$tmp/usual" 2>&1
	in_lanes "$tmp/release" one_way
}
count_release() {
	builds release >"$tmp/release"
	echo "$(wc -l <"$tmp/release")" 150
}

# --- paths: every scenario, as new kernels do it and as older ones have to ---

# path NAME COMMAND...: names the path in each result, and passes that on in one
# piece, for all run at once: most of what they do is to wait.
path() {
	name=$1
	shift
	"$@" 2>&1 </dev/null | while IFS= read -r line; do
		case $line in
		'ok - '*) echo "ok - $name: ${line#ok - }" ;;
		'not ok - '*)
			IFS= read -r why
			printf '%s\n' "not ok - $name: ${line#not ok - }" "$why" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
}

section_paths() {
	path 'this kernel' "$BUILD/scenarios" &
	path 'no pidfd_open, no close_range' "$BUILD/deny" ENOSYS pidfd_open,close_range "$BUILD/scenarios" &
	wait	# two at once: see autogroup in .ci/run
	path 'no pidfd_open' env RUNS=20 "$BUILD/deny" ENOSYS pidfd_open "$BUILD/scenarios" &
	path 'close_range refused' env RUNS=20 "$BUILD/deny" EPERM close_range "$BUILD/scenarios" &
	wait
}
count_paths() { scenarios=$("$BUILD/scenarios" -n) && echo $((4 * scenarios)) 150; }

# --- refused: what start needs and does not get ------------------------------

section_refused() {
	rows refused | while read -r want give calls; do
		report "refused: $calls ($give): start says so, nothing else changes" "$(
			"$BUILD/deny" "$give" "$calls" "$BUILD/scenarios" --refused "$want" 2>&1 </dev/null ||
				echo "status $?"
			echo "$the_end"
		)"
	done
}
count_refused() { echo "$(rows refused | wc -l)" 5; }

# --- tools: what other programs say -------------------------------------------

# traced CALLS COMMAND...: strace of a demo that the command runs; CALLS are those of
# the helper after its filter, which are in that order when nothing is repeated.
traced() {
	want=$1
	shift
	timeout "$deadline" "$@" >"$tmp/said" </dev/null 2>"$tmp/err"
	vmm=$(sed -n 's/^vmm=\([0-9]*\) .*/\1/p' "$tmp/said")
	helper=$(sed -n 's/.* helper=\([0-9]*\)$/\1/p' "$tmp/said")
	sed -n "s/^$helper  *//p" "$tmp/trace" | grep -v '^+++\|^<\.\.\.\|^---' |
		sed 's/^prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, [^N].*/filter/; s/(.*//' >"$tmp/calls"
	[ -s "$tmp/calls" ] || echo 'nothing traced'
	sed '/^filter$/q' "$tmp/calls" | grep -vx 'rt_sigprocmask\|prctl\|prlimit64\|setsid\|close_range\|unshare\|openat\|getdents64\|close\|chdir\|pidfd_open\|rt_sigtimedwait\|kill\|munmap\|madvise\|timer_create\|timer_settime\|capget\|read\|capset\|pipe2\|clone\|ppoll\|getppid\|filter'
	got=$(sed '/^filter$/,$!d' "$tmp/calls" | sed '1,/^getppid$/d' | uniq | tr '\n' ' ')
	echo "$got" | grep -qx "$want" || echo "after its filter: $got"
	# The one that clones it is a thread, which has no area for restartable sequences.
	thread=$(sed -n "s/^$vmm .*CLONE_THREAD.* = \([0-9]*\)$/\1/p; s/^$vmm .*clone resumed.* = \([0-9]*\)$/\1/p" "$tmp/trace" | tail -n 1)
	grep -q "^$thread .*clone(.*\|^$thread .*clone resumed.*" "$tmp/trace" && grep "^$thread " "$tmp/trace" | grep -q " = $helper$" ||
		echo "the helper is not cloned by thread $thread"
}

section_tools() {
	name='strace: the whole life of a helper, and of a start, in the listed calls'
	if ! have strace || ! strace -o /dev/null true 2>/dev/null; then skip_tool "$name" 'no strace, or no ptrace'
	else
		report "$name" "$(
			st="strace -f -qq -o $tmp/trace"
			# shellcheck disable=SC2086
			traced 'ppoll \(timer_settime \)\?\(kill ppoll \)*\(kill \)\?exit_group ' env $st "$BUILD/demo" -c -m 16
			# shellcheck disable=SC2086
			traced '\(getppid unshare rt_sigtimedwait \)*getppid unshare \(ppoll unshare \)*kill \(ppoll kill \)*\(ppoll \)\?exit_group ' \
				"$BUILD/deny" ENOSYS pidfd_open,close_range $st "$BUILD/demo" -c -m 16
			echo "$the_end"
		)"
	fi

	name='shellcheck: the shell scripts'
	if ! have shellcheck; then skip_tool "$name" 'no shellcheck'
	else report "$name" "$(shellcheck test/run.sh .ci/run 2>&1 && echo "$the_end")"; fi

	for shell in dash 'busybox sh'; do
		name="$shell runs the tests of the demo"
		if ! have "${shell% *}"; then skip_tool "$name" "no ${shell% *}"
		else
			# shellcheck disable=SC2086
			report "$name" "$(
				CC=$CC BUILD=$BUILD $shell test/run.sh demo >"$tmp/out" 2>&1 || grep -v '^ok' "$tmp/out"
				grep -q '^[1-9][0-9]* passed, 0 failed$' "$tmp/out" && echo "$the_end"
			)"
		fi
	done

	# recipe FIRST-LINE: the code of the README that begins so
	recipe() { sed -n "/^$1/,/^\`\`\`/p" README.md | sed '/^```/d'; }

	name='README: what is sent to the carrier socket stays open until the helper is gone'
	report "$name" "$(
		exec 2>&1
		mkdir -p "$tmp/carrier"
		{
			printf '#include <stdio.h>\n#include <fcntl.h>\n#define ASYNC_TEARDOWN_IMPLEMENTATION\n#include "async_teardown.h"\n'
			recipe '#include <errno.h>'
			printf 'int main(void) {\n\tint helper = start_helper();\n\tint kept = keep_later(3);\n'
			printf '\tclose(3);\n\tprintf("vmm=%%d helper=%%d\\n", getpid(), kept ? kept : helper);\n'
			printf '\tfflush(stdout);\n\tpause();\n}\n'
		} >"$tmp/carrier/carrier.c"
		$CC -O2 -D_GNU_SOURCE -I. -o "$tmp/carrier/carrier" "$tmp/carrier/carrier.c" || echo "$CC fails"
		mkfifo "$tmp/carrier/sent"
		{ cat >/dev/null; : >"$tmp/carrier/eof"; } <"$tmp/carrier/sent" &
		: >"$tmp/said"
		"$tmp/carrier/carrier" 3>"$tmp/carrier/sent" >"$tmp/said" &
		vmm=$!
		started || exit
		send STOP "$helper" "cleanup/$vmm"
		until_ok is_in "$helper" T
		send KILL $vmm carrier
		wait $vmm 2>/dev/null
		[ ! -e "$tmp/carrier/eof" ] || echo 'closed before the helper went'
		send CONT "$helper" "cleanup/$vmm"
		until_ok test -e "$tmp/carrier/eof" || echo 'never closed'
		until_ok is_gone "$helper" || echo 'the helper stays'
		echo "$the_end"
	)"

	name='README: the command of the systemd unit finds the helper'
	if ! have pgrep; then skip_tool "$name" 'no pgrep'
	else
		report "$name" "$(
			exec 2>&1
			command=$(sed -n "s/^ExecStartPost=-+\/bin\/sh -c '\(.*cgroup.procs.*\)'$/\1/p" README.md)
			[ "$command" ] || echo 'no command'
			demo_start || exit
			MAINPID=$vmm sh -c "$(echo "$command" | sed "s|/sys/fs/cgroup/[a-z./]*|$tmp/procs|")" || echo "status $?"
			[ "$(cat "$tmp/procs")" = "$helper" ] || echo "not $helper: $(cat "$tmp/procs")"
			exec 9>&-
			wait $vmm
			until_ok is_gone "$helper" || echo 'the helper stays'
			echo "$the_end"
		)"
	fi

	name='LD_PRELOAD: the recipe of the README, on sleep'
	report "$name" "$(
		exec 2>&1
		mkdir -p "$tmp/preload"
		recipe '\/\* cc -O2 -shared' >"$tmp/preload/preload.c"
		$CC -O2 -shared -fPIC -I. -o "$tmp/preload/libatd.so" "$tmp/preload/preload.c" || echo "$CC fails"
		ATD_FOR=sleep LD_PRELOAD=$tmp/preload/libatd.so sh -c 'exec sleep 1000' &
		vmm=$!
		# shellcheck disable=SC2317	# until_ok calls it
		preloaded() { helper=$(grep -lsx "cleanup/$vmm" /proc/[0-9]*/comm | tr -dc '0-9\n'); [ "$helper" ]; }
		until_ok preloaded || echo 'no helper'
		[ "$(echo "$helper" | wc -l)" = 1 ] || echo "helpers: $helper"
		send STOP "$helper" "cleanup/$vmm"
		until_ok is_in "$helper" T
		send KILL $vmm sleep
		wait $vmm 2>/dev/null
		is_in "$helper" T || echo 'the helper has not outlived it'
		send CONT "$helper" "cleanup/$vmm"
		until_ok is_gone "$helper" || echo 'the helper stays'
		echo "$the_end"
	)"

	name='make: install, musl, a copy alone in a directory, a BUILD with a blank'
	report "$name" "$(
		exec 2>&1
		export MAKEFLAGS=
		make -s install DESTDIR="$tmp/root" PREFIX=/usr
		cmp async_teardown.h "$tmp/root/usr/include/async_teardown.h"
		make -s CC="$CC" BUILD="$tmp/a b" DEMOFLAGS='-m 16' demo >"$tmp/out" || cat "$tmp/out"
		if have musl-gcc; then
			make -s CC=musl-gcc LDFLAGS=-static BUILD="$tmp/musl" DEMOFLAGS='-m 16' demo >"$tmp/out" || cat "$tmp/out"
		elif [ "$MUST_RUN" ]; then echo 'no musl-gcc'; fi
		echo "$the_end"
	)"
}
count_tools() { echo 8 20; }

# --- all of it ------------------------------------------------------------------

# tally PLAN: numbers the results; at the end says what needs to be known of them
tally() {
	n=0 passed=0 failed=0 skipped=0
	: >"$tmp/skipped"
	: >"$tmp/failed"
	while IFS= read -r line; do
		case $line in
		'ok - '* | 'not ok - '*)
			n=$((n + 1))
			line="${line%%ok - *}ok $n - ${line#*ok - }" ;;
		esac
		case $line in
		'ok '*' # SKIP '*)
			skipped=$((skipped + 1))
			why=${line##* # SKIP }
			case $why in *cannot*) why=${why%%: *} ;; esac	# not with what a compiler says
			printf '%s\n' "$why" >>"$tmp/skipped" ;;
		'ok '*) passed=$((passed + 1)) ;;
		'not ok '*)
			failed=$((failed + 1))
			printf '# failed: %s\n' "${line#not ok }" >>"$tmp/failed" ;;
		esac
		printf '%s\n' "$line"
	done
	sort "$tmp/skipped" | uniq -c | sort -rn | sed 's/^ *\([0-9]*\) /# skipped: \1, /'
	cat "$tmp/failed"
	if [ $n -ne "$1" ]; then
		echo "Bail out! planned $1 tests, saw $n"
		failed=$((failed + ($1 > n ? $1 - n : 1)))
	fi
	echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
	[ $failed -eq 0 ]
}

plan=0 seconds=0 sizes=''
for s in $sections; do
	count=$("count_$s") || exit 2
	plan=$((plan + ${count% *})) seconds=$((seconds + ${count#* })) sizes="$sizes, $s ${count% *}"
done
if [ $seconds -lt 100 ]; then time="$seconds seconds"; else time="$(((seconds + 30) / 60)) minutes"; fi
echo "1..$plan"
echo "# $plan tests, about $time on two CPUs: ${sizes#, }"
echo '# "sh test/run.sh SECTION..." runs only these of them'
for s in $sections; do
	"section_$s"
done </dev/null | tally "$plan"
