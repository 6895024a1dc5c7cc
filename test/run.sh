#!/bin/sh
# run.sh - the tests; "make test" and "make test-all" build what it needs and call it
#
#	sh test/run.sh [--all] [SECTION | SCENARIO]...
#
# With make: make test, make test-all, make test ONLY='paths demo', make test ONLY=signs.
# Without --all it runs what is worth a newcomer's minute.  A SCENARIO is the name of one
# test of test/scenarios.c.  The sections, and where a new test goes:
#
#	paths	every scenario, on this kernel; --all: also as older kernels have to do it
#		(test/scenarios.c)
#	demo	the demo as a person runs it (test/demo.sh)
#	refused	start is refused what it needs (test/refused.table)
#	build	compilers, languages, flags (test/build.table)
#	release	ways to link the image that the helper must not unmap (test/release.table)
#	recipes	the recipes of the README (test/recipes/check.sh)
#	tools	shellcheck; --all: also strace, other shells, make (below)
#
# Environment: CC; BUILD (where the programs are); V=1 prints TAP, a line for each test, as
# --all does; MUST_RUN=1 makes a tool that is missing a failure (not so what the machine
# lacks: root, KVM, control groups; nor what only newer compilers know); RUNS, MIB and SLOW
# are for test/scenarios.c.
#
# The first line is the plan.  The last line is "N passed, N failed", with ", N skipped"
# where some were.  What was skipped and what failed stands before it.
#
# A section is a name in all_sections and two functions: section_NAME prints the results,
# each a line that begins with "ok - " or "not ok - "; count_NAME prints how many there
# are, and how many seconds they take on two CPUs.
#
# It is for dash, bash and BusyBox ash; yash, mksh, posh and zsh do as well, ksh93 hangs.
# shellcheck disable=SC2030,SC2031	# what $(...) changes is meant to stay there
set -u
LC_ALL=C
export LC_ALL
cd "$(dirname "$0")/.." || exit 2
all_sections='paths demo refused build release recipes tools'
CC=${CC:-cc} BUILD=${BUILD:-build} MUST_RUN=${MUST_RUN:-} all=
case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
deadline=120		# seconds; for what hangs, not for what is slow

# The same shell does the rest, under test/contain.c: however it ends, no process and no
# file of it stays.
case ${1:-} in -h | --help) sed -n '2,/^$/p' test/run.sh | sed '/^# A section/,$d; s/^# \{0,1\}//'; exit ;; esac
if [ "${CONTAINED:-}" != $PPID ]; then
	[ -x "$BUILD/contain" ] || { echo "run.sh: no $BUILD/contain; \"make test\" builds what this needs" >&2; exit 2; }
	export CC BUILD MUST_RUN
	exec "$BUILD/contain" "$(readlink /proc/$$/exe)" test/run.sh "$@"
fi
tmp=$TMPDIR

[ "${1:-}" != --all ] || { all=1; shift; }
verbose=${V:-$all} sections='' scenarios=$("$BUILD/scenarios" -l) || exit 2
named=''
for word; do
	case " $all_sections " in
	*" $word "*) sections="$sections $word" ;;
	*)
		echo "$scenarios" | grep -qx -e "$word" || { echo "run.sh: no section or scenario $word; see --help" >&2; exit 2; }
		named="$named $word" ;;
	esac
done
if [ "$named" ]; then
	scenarios=$(echo "$named" | tr ' ' '\n' | sed 1d)
	case $sections in *paths*) ;; *) sections="paths $sections" ;; esac
fi
sections=${sections:-$all_sections}

# --- what a test says, and waits for -----------------------------------------

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

state() { sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null; }
is_in() { [ "$(state "$1")" = "$2" ]; }
is_gone() { case $(state "$1") in '' | Z) ;; *) return 1 ;; esac; }	# PID 1 may reap late

# send SIGNAL PID NAME: if there is such a process, and by that name; PIDs are used
# again, and some numbers mean many processes.
send() {
	if [ "$2" ] && [ "$(cat "/proc/$2/comm" 2>/dev/null)" = "$3" ]; then
		kill -"$1" "$2"
	else
		echo "for SIG$1: PID '$2' is not $3"
	fi
}

# started: waits until the VMM has said so in $tmp/said, and sets helper
said_or_gone() { grep -q '^vmm=' "$tmp/said" || is_gone "$1"; }
started() {
	until_ok said_or_gone "$vmm"
	helper=$(sed -n "s/^vmm=$vmm helper=\([0-9]*\)$/\1/p" "$tmp/said")
	[ "$helper" ] || { echo 'no start:'; cat "$tmp/said" "$tmp/err"; return 1; }
}

# if_all WORD OTHER: with --all the one, without it the other
if_all() { if [ "$all" ]; then echo "$1"; else echo "$2"; fi; }

# rows SECTION: its table's lines, less what is for the reader
rows() { sed 's/^[[:space:]]*#.*//; /^[[:space:]]*$/d' "test/$1.table"; }

. test/demo.sh
. test/build.sh
. test/recipes/check.sh

# --- paths: every scenario, as new kernels do it and as older ones have to ---

# These take half a minute or a minute, and wait.  So they run beside everything else.
waiting=$(echo "$scenarios" | grep -xE 'hung_reader|timeouts|pid_reused|idle')
others=$(echo "$scenarios" | grep -vxE 'hung_reader|timeouts|pid_reused|idle')

# path NAME COMMAND...: runs the scenarios by it, and names the path in each result
path() {
	name=$1
	shift
	for scenario in $waiting; do
		prefixed "$name" "$@" "$BUILD/scenarios" "$scenario" >"$tmp/later.$name.$scenario" &
	done
	# shellcheck disable=SC2086
	[ -z "$others" ] || prefixed "$name" "$@" "$BUILD/scenarios" $others
}
prefixed() {
	prefix=$1
	shift
	"$@" 2>&1 </dev/null | while IFS= read -r line; do
		case $line in
		'ok - '* | 'not ok - '*) printf '%s\n' "${line%%ok - *}ok - $prefix${line#*ok - }" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
}

section_paths() {
	[ "$all" ] || { path '' env; return; }
	path 'this kernel: ' env
	path 'no pidfd_open, no close_range: ' "$BUILD/deny" ENOSYS pidfd_open,close_range
	path 'no pidfd_open: ' env RUNS=20 "$BUILD/deny" ENOSYS pidfd_open
	path 'close_range refused: ' env RUNS=20 "$BUILD/deny" EPERM close_range
}
count_paths() {
	n=$(echo "$scenarios" | wc -w)
	seconds=$((n / 3 + 1))
	if_all "$((4 * n)) $((4 * seconds))" "$n $seconds"
}

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
count_refused() { echo "$(rows refused | wc -l)" 2; }

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
	sed '/^filter$/q' "$tmp/calls" | grep -vx 'rt_sigprocmask\|prctl\|prlimit64\|setsid\|close_range\|unshare\|openat\|getdents64\|close\|chdir\|pidfd_open\|rt_sigtimedwait\|kill\|munmap\|madvise\|mlock\|timer_create\|timer_settime\|capget\|read\|capset\|pipe2\|clone\|ppoll\|getppid\|filter'
	got=$(sed '/^filter$/,$!d' "$tmp/calls" | sed '1,/^getppid$/d' | uniq | tr '\n' ' ')
	echo "$got" | grep -qx "$want" || echo "after its filter: $got"
	# The one that clones it is a thread, which has no area for restartable sequences.
	thread=$(sed -n "s/^$vmm .*CLONE_THREAD.* = \([0-9]*\)$/\1/p; s/^$vmm .*clone resumed.* = \([0-9]*\)$/\1/p" "$tmp/trace" | tail -n 1)
	grep -q "^$thread .*clone(.*\|^$thread .*clone resumed.*" "$tmp/trace" && grep "^$thread " "$tmp/trace" | grep -q " = $helper$" ||
		echo "the helper is not cloned by thread $thread"
}

section_tools() {
	name='shellcheck: the shell scripts'
	if ! have shellcheck; then skip_tool "$name" 'no shellcheck'
	else
		report "$name" "$(shellcheck -ax test/run.sh .ci/run test/recipes/*.sh 2>&1 && echo "$the_end")"
	fi
	[ "$all" ] || return

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

	for shell in dash 'busybox sh'; do
		name="$shell runs the tests of the demo"
		if ! have "${shell% *}"; then skip_tool "$name" "no ${shell% *}"
		else
			# shellcheck disable=SC2086
			report "$name" "$(
				$shell test/run.sh demo >"$tmp/out" 2>&1 || cat "$tmp/out"
				grep -q '^[1-9][0-9]* passed, 0 failed$' "$tmp/out" && echo "$the_end"
			)"
		fi
	done

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
count_tools() { if_all '5 15' '1 2'; }

# --- all of it ------------------------------------------------------------------

# group FILE TITLE: how many were skipped, and each reason once
group() {
	[ -s "$1" ] || return
	echo "# skipped, $2:"
	sort "$1" | uniq -c | sort -rn | sed 's/^ *\([0-9]*\) /#	\1: /'
}

# tally PLAN: numbers the results; at the end says what needs to be known of them
tally() {
	n=0 passed=0 failed=0 skipped=0 dots=0 group=''
	for file in behaviour compilers failed; do
		: >"$tmp/tally.$file"
	done
	while IFS= read -r line; do
		dot=''
		case $line in
		'ok - '*' # SKIP '*)
			n=$((n + 1)) skipped=$((skipped + 1)) dot=s
			why=${line##* # SKIP } why=${why%; the rest was tried}
			case $why in *cannot*) why=${why%%: *} ;; esac	# not with what a compiler says
			printf '%s\n' "$why" >>"$tmp/tally.$group" ;;
		'ok - '*) n=$((n + 1)) passed=$((passed + 1)) dot=. ;;
		'not ok - '*)
			n=$((n + 1)) failed=$((failed + 1))
			printf '# failed: %s\n' "$n - ${line#not ok - }" >>"$tmp/tally.failed" ;;
		'# section build' | '# section release' | '# section recipes' | '# section tools') group=compilers ;;
		'# section '*) group=behaviour ;;
		esac
		if [ "$dot" ] && [ -z "$verbose" ]; then
			printf %s "$dot"
			dots=$((dots + 1))
			[ $((dots % 70)) -ne 0 ] || echo
			continue
		fi
		[ $((dots % 70)) -eq 0 ] || echo
		dots=0
		case $line in
		'# section '*) echo "# ${line#\# section }" ;;
		'ok - '* | 'not ok - '*) printf '%s\n' "${line%%ok - *}ok $n - ${line#*ok - }" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
	[ $((dots % 70)) -eq 0 ] || echo
	group "$tmp/tally.compilers" 'compilers and tools (on Debian, .ci/run installs most of them)'
	group "$tmp/tally.behaviour" 'behaviour'
	cat "$tmp/tally.failed"
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
case $sections in *paths*) [ -z "$waiting" ] || [ $seconds -ge 65 ] || seconds=65 ;; esac
if [ $seconds -lt 100 ]; then time="$seconds seconds"; else time="$(((seconds + 30) / 60)) minutes"; fi
echo "1..$plan"
echo "# $plan tests, about $time on two CPUs: ${sizes#, }"
[ "$verbose" ] || echo '# A dot is a test that passes, an s one that is skipped.  V=1 prints a line for each.'
{
	for s in $sections; do
		echo "# section $s"
		"section_$s"
	done
	set -- "$tmp"/later.*
	if [ -e "$1" ]; then
		echo '# section paths, what takes half a minute and more'
		wait
		cat "$@"
	fi
} </dev/null | tally "$plan"
