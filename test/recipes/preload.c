/*
 * preload - a helper for a VMM that cannot be changed
 *
 *	cc -O2 -shared -fPIC -o libatd.so preload.c
 *	ATD_FOR=qemu-system-x86 LD_PRELOAD=/usr/local/lib/libatd.so qemu-system-x86_64 ...
 *
 * ATD_FOR is the VMM's name in /proc/PID/comm, at most 15 characters.  "pgrep -x
 * cleanup/PID" shows whether it works.  A constructor knows of no RAM, so nothing is released
 * early.  It runs before a program daemonizes, and the daemon then has no helper.  Static and
 * setuid programs ignore LD_PRELOAD; so does one that SELinux starts without noatsecure.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ASYNC_TEARDOWN_STATIC
#include "async_teardown.h"

__attribute__((constructor)) static void preload(void)
{
	const char *name = getenv("ATD_FOR");
	char comm[16] = "";

	if (!name || prctl(PR_GET_NAME, comm) || strncmp(name, comm, 15))
		return;			/* a wrapper on the way to it: passes it on */
	unsetenv("LD_PRELOAD");		/* not for the children of the VMM */
	async_teardown_start();
}
