/*
 * drop_in - the header in a file of somebody else's
 *
 * C and C++, at any standard.  Compiled with none or more of
 *   LAST    after libc's headers, rather than before any
 *   UAPI    after the kernel's headers
 *   STATIC  with ASYNC_TEARDOWN_STATIC
 *   API     with an ASYNC_TEARDOWN_API of its own
 *   WORDS   after macros that are called as attributes are
 *   PACK    after a #pragma pack that somebody has left over
 *   EXPECT  the error that every call has to give; START_FAILS the one of start alone
 *   PART=1  only the implementation, PART=2 only the user of it; default both
 */
#if defined(STATIC)
#define ASYNC_TEARDOWN_STATIC
#endif

#ifdef API
#define ASYNC_TEARDOWN_API __attribute__((visibility("default"))) extern
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
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/signal.h>
#include <linux/types.h>
#include <linux/wait.h>
#ifdef __has_include	/* older kernels have no such headers */
#if __has_include(<linux/close_range.h>)
#include <linux/close_range.h>
#endif
#if __has_include(<linux/pidfd.h>)
#include <linux/pidfd.h>
#endif
#if __has_include(<linux/time_types.h>)
#include <linux/time_types.h>
#endif
#endif
#endif

#ifdef WORDS
#if !defined(__cplusplus)
#include <stdnoreturn.h>
#else
#define noreturn __attribute__((noreturn))
#endif
#define aligned(n) __attribute__((aligned(n)))
#define hidden __attribute__((visibility("hidden")))
#define no_instrument_function __attribute__((no_instrument_function))
#define noclone __attribute__((noclone))
#define noinline __attribute__((noinline))
#define optimize 1
#define section(s) __attribute__((section(s)))
#define unused __attribute__((unused))
#define visibility(v) __attribute__((visibility(v)))
#define warn_unused_result __attribute__((warn_unused_result))
#endif

#ifdef PACK
#pragma pack(1)
#endif

#if !defined(PART) || PART == 1
#define ASYNC_TEARDOWN_IMPLEMENTATION
#endif
#include "async_teardown.h"
#include "async_teardown.h"

#if ASYNC_TEARDOWN_VERSION < 10300
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
#define TO_NUMBER(pointer) reinterpret_cast<unsigned long>(pointer)
#define TO_CHARS(pointer) static_cast<char *>(pointer)
#else
extern int puts(const char *);
#define TO_NUMBER(pointer) ((unsigned long)(pointer))
#define TO_CHARS(pointer) ((char *)(pointer))
#endif

#ifdef EXPECT
#define SUCCESS (-(EXPECT))
#else
#define SUCCESS 0
#endif

#define PAGE 65536UL	/* the largest anywhere */
#define RAM (16 * PAGE)

static char *ram;	/* static, or it would be a leak */

static int told(void)
{
	static const int kept[] = { 0, 1 };

	ram = TO_CHARS(__builtin_malloc(RAM + PAGE));
	if (!ram)
		return 0;
	ram += PAGE - TO_NUMBER(ram) % PAGE;
	if (async_teardown_threads(3) > 3 || async_teardown_threads(3) == 0)
		return 0;
	return async_teardown_ram(ram, RAM) == SUCCESS &&
		async_teardown_ram(ram, 0) == SUCCESS &&
		async_teardown_ram(ram, RAM) == SUCCESS &&
		async_teardown_keep(kept, 2) == SUCCESS &&
		async_teardown_keep(kept, 0) == SUCCESS &&
		async_teardown_keep(kept, 2) == SUCCESS;
}

int main(void)
{
	int good = told();
	const int helper = async_teardown_start();

#ifdef PART
	good = good && part_1();
#endif
#ifdef EXPECT
	if (good && helper == SUCCESS && async_teardown_stop() == SUCCESS)
#elif defined(START_FAILS)
	if (good && helper == -(START_FAILS) && async_teardown_stop() == 0)
#else
	if (good && helper > 0 && async_teardown_start() > 0 &&
	    async_teardown_stop() == 0 && async_teardown_stop() == 0 &&
	    async_teardown_start() > 0)
#endif
		return 0;
	puts(helper < 0 ? "start failed" : "failed");
	return 1;
}
#endif
