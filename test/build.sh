# build.sh - what compilers and linkers make of the header; part of run.sh
#
# A row of test/build.table or test/release.table is a test for each compiler that it names.
# The tables say how to write one.  A new MODE is a line of one_build, a new HOW one of
# one_way.
# shellcheck shell=sh

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

# newest NAME: of all its versions; NAME, if there is none
newest() {
	for cc in "$1" $(versions "$1"); do
		echo "$("$cc" -dumpversion 2>/dev/null) $cc"
	done | sort -n | sed -n '$s/.* //p'
}

# compilers: for each word of a table that is not a compiler's name, a line for each compiler
compilers() {
	echo "CC $CC"
	echo "CXX $(echo "$CC" | sed 's/gcc/g++/; s/clang/clang++/; s/^cc/c++/')"
	[ "$all" ] || return
	for name in gcc g++ clang clang++; do
		versions $name | sed "s/^/$name-N /"
	done
	echo "clang-newest $(newest clang)"
	echo "clang++-newest $(newest clang++)"
}

# tests SECTION COLUMN: its table, a line "MODE ... COMPILER FLAGS" for each test of this run;
# the compilers are in that column.  awk reads what compilers says, an empty line, the table.
tests() {
	{
		compilers
		echo
		rows "$1"
	} | awk -v all="$all" -v column="$2" '
		function shift() { word = $1; sub(/^[ \t]*[^ \t]+[ \t]*/, ""); return word }

		!NF { in_table = 1; next }
		!in_table { name = shift(); called[name] = called[name] $0 "\n"; next }
		{
			while (match($0, /\$[a-z0-9_]+/)) {
				name = substr($0, RSTART + 1, RLENGTH - 1)
				if (!(name in words)) {
					print "no $" name ": " $0 | "cat >&2"
					exit 1
				}
				$0 = substr($0, 1, RSTART - 1) words[name] substr($0, RSTART + RLENGTH)
			}
		}
		$2 == "=" { name = shift(); shift(); words[name] = $0; next }
		!sub(/^\*/, "") && !all { next }
		{
			before = ""
			for (i = 1; i < column; i++)
				before = before shift() " "
			n = split(shift(), list, ",")
			if (!all && list[1] !~ /musl/) {
				list[1] = list[1] ~ /\+\+/ ? "CXX" : "CC"
				n = 1
			}
			for (i = 1; i <= n; i++) {
				if (!(list[i] in called))
					called[list[i]] = list[i] ~ /-N$/ ? "" : list[i] "\n"
				m = split(called[list[i]], one, "\n")
				for (j = 1; j < m; j++)
					print before one[j], $0
			}
		}'
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
			grep -vxE '_GLOBAL_OFFSET_TABLE_|\.TOC\.|_gp_disp|__ehdr_start|_end|__splitstack_find|_(save|rest)gpr[01]_[0-9]+|__(start|stop)_atd_text|__aarch64_(cas|ldadd|swp)[48]_[a-z]+|' | sed "s/^/$opt: /"
	done
}

# bare COMPILER FLAGS...: prints what the helper's functions call and touch that is not the
# header's own.
bare() {
	for opt in -O0 -O2; do
		"$@" -I. $opt -w -fdata-sections -c -o alone.o "alone.$c" || continue
		objdump -drw -j atd_text alone.o | awk -f calls.awk | sort -u | sed "s/^/$opt: /"
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
	bare) name="the helper calls nothing: $name" ;;
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
	bare) cp "$OLDPWD/test/calls.awk" . && bare "$compiler" "$@" >log 2>&1 ;;
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
	tests build 2 >"$tmp/build" || exit
	echo $(($(wc -l <"$tmp/build") + 1)) "$(if_all 200 8)"
}

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

# one_way NUMBER HOW TEST,TEST... COMPILER FLAGS...
one_way() {
	dir=$tmp/way.$1 how=${2%+*} changed='' names=$(echo "$3" | tr , ' ') compiler=$4 sources=$PWD/test/scenarios.c
	case $2 in *+*) changed=${2#*+} ;; esac
	how_changed=$2
	shift 3
	name=$(echo "$*" | sed 's/ $//')
	case $how in
	late) name="not released early, for want of an image: $name" ;;
	gaps) name="never its own image, which has gaps: $name" ;;
	second*) name="two copies of the header: $how_changed: $name" ;;
	*) name="released early, and never its own image: $how_changed: $name" ;;
	esac
	if ! have "$compiler"; then skip_tool "$name" "no $compiler"; return; fi
	case $compiler in *musl*)	# brings no headers of the kernel
		set -- "$@" -idirafter /usr/include -idirafter "/usr/include/$("$compiler" -print-multiarch)" ;;
	esac
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
	program | gaps | late) "$@" -o scenarios "$sources" -pthread && change scenarios "$changed" ;;
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
	tests release 3 >"$tmp/release" || exit
	echo "$(wc -l <"$tmp/release")" "$(if_all 150 15)"
}
