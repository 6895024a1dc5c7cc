# shellcheck shell=sh
# shellcheck disable=SC2030,SC2031,SC2086,SC2154	# run.sh sources this, and has the rest
#
# check.sh - the recipes, built and run as their readers would: section "recipes" of run.sh

# The processes of a recipe write nothing to the pipe that a report is read from: it would
# have no end while one of them lives.

# compiled NAME COMPILER FLAGS...: $tmp/recipes/NAME from NAME.c
compiled() {
	mkdir -p "$tmp/recipes"
	to=$tmp/recipes/$1 from=test/recipes/$1.c
	shift
	"$@" -Wall -Wextra -Werror -O2 -I. -o "$to" "$from" || echo "$1 fails"
}

# loads_libraries PROGRAM: it is linked dynamically
loads_libraries() { LC_ALL=C grep -q '/lib[^/]*/ld-[^/]*\.so' "$1"; }

# vmm_start COMMAND...: sets vmm, helper and dir.  What holds 3, 4 or 5 open holds back
# $dir/first, last or later.  A line to 9 ends the VMM.
vmm_start() {
	dir=$tmp/recipes/run
	rm -rf "$dir" && mkdir -p "$dir"
	for pipe in first last later; do
		mkfifo "$dir/$pipe.pipe"
		{ cat; : >"$dir/$pipe"; } <"$dir/$pipe.pipe" >/dev/null &
	done
	mkfifo "$dir/hold"
	: >"$tmp/said"
	exec "$@" 3>"$dir/first.pipe" 4>"$dir/last.pipe" 5>"$dir/later.pipe" \
		<"$dir/hold" >>"$tmp/said" 2>"$tmp/err" &
	vmm=$!
	exec 9>"$dir/hold"
	started
}

# lives_on NAME HOW PIPE...: the VMM ends, by SIGKILL or in order; it is reaped while its
# helper is stopped and has all the RAM, and the pipes end only after that.
lives_on() {
	name=$1 how=$2
	shift 2
	send STOP "$helper" "cleanup/$vmm"
	until_ok is_in "$helper" T || echo 'the helper does not stop'
	case $how in KILL) send KILL "$vmm" "$name" ;; *) echo >&9 ;; esac
	until_ok is_gone "$vmm" || { echo 'the VMM stays'; send KILL "$vmm" "$name"; }
	wait "$vmm" 2>/dev/null
	is_in "$helper" T || echo 'the helper has not outlived it'
	kib=$(awk '/^RssAnon/ { print $2 }' "/proc/$helper/status")
	[ "${kib:-0}" -ge "$ram_kib" ] || echo "the helper has $kib KiB"
	for pipe; do
		[ ! -e "$dir/$pipe" ] || echo "$pipe: the end came while the helper was stopped"
	done
	send CONT "$helper" "cleanup/$vmm"
	until_ok is_gone "$helper" || echo 'the helper stays'
	for pipe; do
		until_ok test -e "$dir/$pipe" || echo "$pipe: no end"
	done
	exec 9>&-
}

# signs NAME COMMAND...: both ways to end
signs() {
	name=$1 ram_kib=65536
	shift
	for how in KILL exit; do
		vmm_start "$@" || return
		lives_on "$name" $how first last
	done
}

# What QEMU declares, as far as qemu.c uses it, and a machine of four blocks.  The notifier
# has to tell of the first one.
qemu_stubs() {
	mkdir -p "$1/qemu" "$1/exec"
	cat >"$1/qemu/osdep.h" <<-END
		#include <errno.h>
		#include <stdbool.h>
		#include <stddef.h>
		#include <stdint.h>
		#include <stdio.h>
		#include <string.h>
	END
	echo '#define warn_report(...) (printf("warning: " __VA_ARGS__), puts(""))' >"$1/qemu/error-report.h"
	echo '#define MiB (INT64_C(1) << 20)' >"$1/qemu/units.h"
	echo 'void init_async_teardown(void);' >"$1/qemu/async-teardown.h"
	cat >"$1/exec/memory.h" <<-END
		typedef uintptr_t ram_addr_t;
		typedef struct MemoryRegion { bool device; } MemoryRegion;
		MemoryRegion *memory_region_from_host(void *ptr, ram_addr_t *offset);
		bool memory_region_is_ram_device(MemoryRegion *mr);
	END
	cat >"$1/exec/ramlist.h" <<-END
		typedef struct RAMBlockNotifier RAMBlockNotifier;
		struct RAMBlockNotifier {
			void (*ram_block_added)(RAMBlockNotifier *n, void *host, size_t size, size_t max_size);
			void (*ram_block_removed)(RAMBlockNotifier *n, void *host, size_t size, size_t max_size);
			void (*ram_block_resized)(RAMBlockNotifier *n, void *host, size_t old_size, size_t new_size);
		};
		void ram_block_notifier_add(RAMBlockNotifier *n);
	END
	cat >"$1/machine.c" <<-END
		#include "qemu/osdep.h"
		#include "exec/memory.h"
		#include "exec/ramlist.h"
		#include "qemu/async-teardown.h"
		static char *const at = (char *)0x10000000;	/* never read */
		static MemoryRegion plain, bar = { true };
		MemoryRegion *memory_region_from_host(void *p, ram_addr_t *offset)
		{
			*offset = 0;
			return p == at + 1 ? &bar : p == at + 3 ? NULL : &plain;
		}
		bool memory_region_is_ram_device(MemoryRegion *mr) { return mr->device; }
		void ram_block_notifier_add(RAMBlockNotifier *n)
		{
			n->ram_block_added(n, at, 1 << 20, 16 << 20);
			n->ram_block_added(n, at + 1, 64 << 20, 64 << 20);
			n->ram_block_added(n, at + 2, 1 << 20, 1 << 20);
			n->ram_block_added(n, at + 3, 32 << 20, 32 << 20);
			n->ram_block_removed(n, at, 1 << 20, 16 << 20);
		}
		int main(void) { init_async_teardown(); return 0; }
	END
	cat >"$1/says.h" <<-END
		static int async_teardown_ram(void *p, unsigned long n) { return printf("ram %p %lu\n", p, n), n ? 0 : -ENOENT; }
		static int async_teardown_start(void) { return -EPERM; }
	END
}

# With --all also static programs.  Without Rust there is one line that says so.
carriers() { echo "$CC"; [ ! "${all:-}" ] || echo 'musl-gcc -static'; }
rusts() { echo dynamic; if [ "${all:-}" ] && have cargo; then echo static; echo musl; fi; }

section_recipes() {
	carriers | while read -r compiler; do
		name="recipe: carrier.c ($compiler): the signs, and what is kept later"
		if ! have "${compiler%% *}"; then skip_tool "$name" "no ${compiler%% *}"; continue; fi
		report "$name" "$(
			exec 2>&1
			compiled carrier $compiler
			signs carrier "$tmp/recipes/carrier"
			vmm_start "$tmp/recipes/carrier" 5 || exit
			ram_kib=65536
			lives_on carrier KILL first last later
			echo "$the_end"
		)"
	done

	report 'recipe: supervisor.c: the next VM starts after the first sign; the last one is logged' "$(
		exec 2>&1
		compiled carrier $CC
		compiled supervisor $CC
		dir=$tmp/recipes/run
		rm -rf "$dir" && mkdir -p "$dir" && mkfifo "$dir/hold"
		: >"$dir/said"
		exec "$tmp/recipes/supervisor" "$tmp/recipes/carrier" <"$dir/hold" >"$dir/said" 2>"$dir/log" &
		supervisor=$!
		exec 9>"$dir/hold"
		# shellcheck disable=SC2317	# until_ok calls it
		vms() { [ "$(grep -c '^vmm=[0-9]* helper=[1-9]' "$dir/said")" -ge "$1" ]; }
		until_ok vms 1 || { echo 'no VM:'; cat "$dir/said" "$dir/log"; exit; }
		vmm=$(sed -n 's/^vmm=\([0-9]*\) .*/\1/p' "$dir/said")
		helper=$(sed -n 's/.* helper=//p' "$dir/said")
		send STOP "$helper" "cleanup/$vmm"
		until_ok is_in "$helper" T || echo 'the helper does not stop'
		send KILL "$vmm" carrier
		until_ok is_gone "$vmm"
		sleep 0.3		# for one that does not wait for the sign
		! vms 2 || echo 'the next VM came while the helper was stopped'
		send CONT "$helper" "cleanup/$vmm"
		until_ok vms 2 || echo 'no next VM'
		echo >&9
		# shellcheck disable=SC2317
		until_ok is_gone $supervisor || { echo 'the supervisor stays'; send KILL $supervisor supervisor; }
		wait $supervisor || echo "status $?"
		[ "$(sed 's/.*: //' "$dir/log" | sort | uniq -c | tr -s ' \n' ' ')" = ' 2 all is back 2 the devices are free ' ] || cat "$dir/log"
		echo "$the_end"
	)"

	name='recipe: preload.c: a VMM that knows nothing of it'
	mkdir -p "$tmp/recipes"
	printf '#include <unistd.h>\nint main(void) { return write(1, "runs\\n", 5) < 0 || pause(); }\n' >"$tmp/recipes/unaware.c"
	if ! $CC -o "$tmp/recipes/unaware" "$tmp/recipes/unaware.c" || ! loads_libraries "$tmp/recipes/unaware"; then
		skip "$name" "$CC links statically: such a program ignores LD_PRELOAD"
	else
		report "$name" "$(
			exec 2>&1
			compiled preload $CC -shared -fPIC
			: >"$tmp/out"
			exec env ATD_FOR=unaware LD_PRELOAD="$tmp/recipes/preload" "$tmp/recipes/unaware" >"$tmp/out" 2>&1 &
			vmm=$!
			until_ok grep -q runs "$tmp/out"	# the constructor has returned
			helper=$(grep -lsx "cleanup/$vmm" /proc/[0-9]*/comm | tr -dc '0-9\n')
			[ "$(echo "$helper" | grep -c .)" = 1 ] || echo "helpers: $helper"
			ram_kib=0 dir=$tmp
			lives_on unaware KILL
			echo "$the_end"
		)"
	fi

	name='recipe: move-helper.sh: as vm.service calls it, for a VMM that has a helper late'
	if ! have pgrep; then skip_tool "$name" 'no pgrep'
	else
		report "$name" "$(
			exec 2>&1
			compiled carrier $CC
			root=$tmp/recipes/cgroup
			rm -rf "$root" && mkdir -p "$root/teardown.slice"
			command=$(sed -n "s/^ExecStartPost=-+\/bin\/sh -c '\(.*\)'$/\1/p" test/recipes/vm.service |
				sed "s|/usr/local/lib|$PWD/test/recipes|")
			# move: what the unit does; says in ./log how it ends
			move() { CGROUP_ROOT=$root MAINPID=$vmm sh -c "${command%&}" >"$root/log" 2>&1; }
			rm -f "$tmp/recipes/go" && mkfifo "$tmp/recipes/go"
			vmm_start sh -c "echo vmm=\$\$ helper=1; read -r go <$tmp/recipes/go; exec $tmp/recipes/carrier"
			move && echo 'moved without cgroup v2'
			grep -q 'not cgroup v2' "$root/log" || cat "$root/log"
			: >"$root/cgroup.controllers"
			path=$(sed -n 's/^0:://p' "/proc/$vmm/cgroup")
			mkdir -p "$root/$path" && echo 0 >"$root/$path/cpuset.mems"
			move && echo 'moved with cpuset.mems'
			grep -q 'has cpuset.mems' "$root/log" || cat "$root/log"
			echo >"$root/$path/cpuset.mems"
			move &
			moving=$!
			sleep 0.3	# for one that does not wait
			[ ! -e "$root/teardown.slice/cgroup.procs" ] || echo 'moved what is not there'
			: >"$tmp/said"
			echo go >"$tmp/recipes/go"
			started
			wait $moving || { echo "status $?"; cat "$root/log"; }
			[ "$(cat "$root/teardown.slice/cgroup.procs")" = "$helper" ] ||
				echo "not $helper: $(cat "$root/teardown.slice/cgroup.procs")"
			ram_kib=65536
			lives_on carrier KILL first last
			move && echo 'moved the helper of a dead VMM'
			grep -q 'ended without one' "$root/log" || cat "$root/log"
			echo "$the_end"
		)"
	fi

	name='recipe: vm.service: systemd finds no fault'
	if ! have systemd-analyze; then skip "$name" 'no systemd-analyze'
	else
		report "$name" "$(
			exec 2>&1
			mkdir -p "$tmp/recipes/unit"
			sed "s|/usr/local/bin/vmm|/bin/true|; s|/usr/local/lib|$PWD/test/recipes|" \
				test/recipes/vm.service >"$tmp/recipes/unit/vm.service"
			systemd-analyze verify --man=no --recursive-errors=no "$tmp/recipes/unit/vm.service"
			echo "$the_end"
		)"
	fi

	report 'recipe: qemu.c: tells of blocks of 16 MiB or more, not of RAM devices' "$(
		exec 2>&1
		stubs=$tmp/recipes/stubs
		qemu_stubs "$stubs"
		for header in "$PWD/async_teardown.h" "$stubs/says.h"; do
			cp "$header" "$stubs/qemu/async_teardown.h"
			$CC -Wall -Werror -I"$stubs" -o "$stubs/machine" "$stubs/machine.c" test/recipes/qemu.c || echo "$CC fails"
			"$stubs/machine" >"$stubs/said"
		done
		printf 'ram %s\n' '0x10000000 16777216' '0x10000003 33554432' '0x10000000 0' >"$stubs/want"
		echo 'warning: no asynchronous teardown: Operation not permitted' >>"$stubs/want"
		diff "$stubs/want" "$stubs/said"
		echo "$the_end"
	)"

	report 'recipe: kvmtool.patch: what it adds compiles' "$(
		exec 2>&1
		added=$(sed -n 's/^+\([^+]\)/\1/p' test/recipes/kvmtool.patch)
		[ "$(echo "$added" | wc -l)" = 9 ] || echo "not 9 lines: $added"
		{
			printf '#include <stdio.h>\n#include <string.h>\n#define pr_warning(...) printf(__VA_ARGS__)\n'
			printf 'struct kvm { void *ram_start; unsigned long long ram_size; };\n'
			echo "$added" | sed '/^\t/d'
			echo 'int added(struct kvm *kvm);'
			echo 'int added(struct kvm *kvm) { int ret;'
			echo "$added" | sed '/^\t/!d'
			echo 'return ret; }'
		} >"$tmp/recipes/kvmtool.c"
		$CC -Wall -Werror -I. -c -o "$tmp/recipes/kvmtool.o" "$tmp/recipes/kvmtool.c" || echo "$CC fails"
		echo "$the_end"
	)"

	host=$(rustc -vV 2>/dev/null | sed -n 's/^host: //p')
	for how in $(rusts); do
		name="recipe: rust: $how: the signs; an orderly end leaves the RAM alone"
		target=$host
		[ $how != musl ] || target=${host%-gnu}-musl
		if ! have cargo || ! have cc || [ ! "$host" ]; then skip "$name" 'no rustc, cargo or cc'
		elif [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
			skip "$name" "rustc has no standard library for $target"
		else
			report "$name" "$(
				exec 2>&1
				rm -rf "$tmp/recipes/rust" && mkdir -p "$tmp/recipes" && cp -R test/recipes/rust "$tmp/recipes"
				export CARGO_TARGET_DIR="$tmp/recipes/target" ATD_INCLUDE="$PWD" CC="${CC%% *}"
				case $how in dynamic) RUSTFLAGS= ;; *) RUSTFLAGS='-C target-feature=+crt-static' ;; esac
				export RUSTFLAGS
				(cd "$tmp/recipes/rust" && cargo build -q --offline --target "$target") || echo 'cargo fails'
				signs vmm "$CARGO_TARGET_DIR/$target/debug/vmm"
				echo "$the_end"
			)"
		fi
	done
}
count_recipes() { echo $(($(carriers | wc -l) + $(rusts | wc -l) + 6)) 20; }
