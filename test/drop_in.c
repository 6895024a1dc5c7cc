/*
 * drop_in - the header in a file of somebody else's
 *
 * C and C++, at any standard.  Compiled with none or more of
 *   LAST    after libc's headers, rather than before any
 *   UAPI    after the kernel's headers
 *   STATIC  with ASYNC_TEARDOWN_STATIC
 *   PART=1  only the implementation, PART=2 only the user of it; default both
 */
#if defined(STATIC)
#define ASYNC_TEARDOWN_STATIC
#endif

#ifdef LAST
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#ifdef UAPI
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/pidfd.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>
#include <linux/time_types.h>
#include <linux/types.h>
#include <linux/wait.h>
#endif

#if !defined(PART) || PART == 1
#define ASYNC_TEARDOWN_IMPLEMENTATION
#endif
#include "async_teardown.h"
#include "async_teardown.h"

#if ASYNC_TEARDOWN_VERSION < 10000
#error "no version"
#endif

#ifdef ATD_FN
#error "a private macro is left"
#endif

#if defined(PART) && PART == 1
extern int part_1(void);
int part_1(void)
{
	return async_teardown_start() > 0 && !async_teardown_stop();
}
#else
#ifdef PART
extern int part_1(void);
#endif
#ifdef __cplusplus
extern "C" int puts(const char *);
#else
extern int puts(const char *);
#endif

int main(void)
{
	const int helper = async_teardown_start();
#ifdef PART
	const int other = part_1();
#else
	const int other = 1;
#endif

#ifdef EXPECT
	if (other && helper == -(EXPECT) && async_teardown_stop() == helper)
#else
	if (other && helper > 0 && async_teardown_start() > 0 &&
	    async_teardown_stop() == 0 && async_teardown_stop() == 0 &&
	    async_teardown_start() > 0)
#endif
		return 0;
	puts(helper < 0 ? "start failed" : "failed");
	return 1;
}
#endif
