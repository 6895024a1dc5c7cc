#!/bin/sh
# move-helper.sh - moves a VMM's helper to a control group of its own
#
#	move-helper.sh PID [GROUP]	GROUP is under /sys/fs/cgroup; default: teardown.slice
#
# Then nobody who waits for the VM's group to be empty waits for its memory.  This waits for
# the helper as long as the VMM lives.  Where it moves nothing, it says why, with status 1.
root=${CGROUP_ROOT:-/sys/fs/cgroup}
vmm=$1 group=${2:-teardown.slice}

give_up() {
	echo "move-helper.sh: the helper of $vmm stays in its control group: $1" >&2
	exit 1
}

# With version 1, the VM's memory may be charged to the helper's group, and the VM be killed
# by that group's limit.
[ -e "$root/cgroup.controllers" ] || give_up "$root is not cgroup v2"

# A move to a group with other memory nodes changes the VM's memory policy, or migrates its
# RAM: the kernel does it for the whole address space.
path=$(sed -n 's/^0:://p' "/proc/$vmm/cgroup" 2>/dev/null)
while
	path=${path%/}
	grep -qs . "$root$path/cpuset.mems" && give_up "$path has cpuset.mems"
	[ "$path" ]
do
	path=${path%/*}
done

until helper=$(pgrep -P "$vmm" -x "cleanup/$vmm"); do
	kill -0 "$vmm" 2>/dev/null || give_up 'the VMM has ended without one'
	sleep 0.2
done
echo "$helper" >"$root/$group/cgroup.procs" || give_up "cannot write to $group"
