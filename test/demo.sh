# demo.sh - the program as a person runs it, by order of events; part of run.sh
# shellcheck shell=sh

rss_mib() { awk '/^RssAnon/ { print int($2 / 1024) }' "/proc/$1/status" 2>/dev/null; }

# demo_start ARGUMENTS...: sets vmm and helper; its stdin is descriptor 9.
demo_start() {
	rm -f "$tmp/said" "$tmp/hold"
	mkfifo "$tmp/hold"
	: >"$tmp/said"
	exec "$BUILD/demo" -c -m 128 ${1+"$@"} <"$tmp/hold" >"$tmp/said" 2>"$tmp/err" &
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
	[ $got -lt 256 ] || got=$((got % 128 + 128))	# yash adds 384 to a signal
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
		exec "$BUILD/demo" -c -m 16 <"$tmp/hold" >"$tmp/pipe" 2>"$tmp/err" &
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
