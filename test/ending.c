/*
 * ending.c - how a VMM dies, and that it is reaped while the helper still has its memory
 *
 * Causes: exit, abort, signals, kill of its process group, hangup of its terminal.  States:
 * threads that end first, last, all at once or slowly.  A helper that is stopped and
 * continued on its way out.  A VMM with RAM that is released early dies in release.c, one
 * that the OOM killer ends in helper.c, one that is killed in start in starting.c.
 *
 * A new case: a VMM that lives until it is told, and ended_by(how it dies, signal or
 * -status); plus its line in the table below.
 */
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <termios.h>

static void end_exit(void) { start(); ready(); await_go(); exit(3); }
static void end_abort(void) { start(); ready(); await_go(); abort(); }
static void end_segv(void) { start(); ready(); await_go(); *(volatile int *)(uintptr_t)sh->entered = 0; }
static void end_term(void) { start(); ready(); await_go(); raise(SIGTERM); }

static const char *ends(void)
{
	TRY(spawn(end_exit)); TRY(ended_by(by_go, -3));
	TRY(spawn(end_abort)); TRY(ended_by(by_go, SIGABRT));
	TRY(spawn(end_segv)); TRY(ended_by(by_go, SIGSEGV));
	TRY(spawn(end_term)); TRY(ended_by(by_go, SIGTERM));
	TRY(spawn(start)); TRY(ended_by(by_kill, SIGKILL));
	return NULL;
}

static void *start_in_thread(void *arg)
{
	(void)arg;
	start();
	return NULL;
}

static void start_in_thread_that_ends(void)
{
	size_t size = 1 << 20;
	char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_attr_t attr;
	pthread_t t;

	/* libc keeps the thread-local storage at the end of the stack */
	MUST(stack != MAP_FAILED && !pthread_attr_init(&attr) &&
		!pthread_attr_setstack(&attr, stack, size));
	MUST(!pthread_create(&t, &attr, start_in_thread, NULL) && !pthread_join(t, NULL));
	MUST(!munmap(stack, size));
}

static const char *starter_thread_ends(void)
{
	pid_t helper;
	long before;

	TRY(spawn(start_in_thread_that_ends));
	helper = sh->helper;
	before = switches(helper);
	CHECK(freeze(helper) && thaw(helper));	/* run its code once more */
	if (!has_pidfd(helper))
		CHECK(UNTIL(deadline, switches(helper) > before + 5));
	CHECK(asleep(helper));
	return killed_asynchronously();
}

static void *sleeper(void *arg)
{
	(void)arg;
	__atomic_add_fetch(&sh->counter, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
	return NULL;
}

static void make_threads(int n)
{
	pthread_attr_t attr;
	pthread_t t;
	int i;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 65536 > PTHREAD_STACK_MIN ? 65536 : PTHREAD_STACK_MIN);
	for (i = 0; i < n; i++)
		MUST(!pthread_create(&t, &attr, sleeper, NULL));
	MUST(UNTIL(deadline, sh->counter >= n));
}

static int threads_wanted;
static void start_with_threads(void) { make_threads(threads_wanted); start(); }

/*
 * Who tore down, the VMM or the helper?  Nothing is stopped or timed, for that would hide
 * the race.  An epoll keeps the order of two events however late it is asked: the VMM's
 * death, and the last close of a file that only the VMM's memory has mapped.
 */
static int epoll, deaths, closes;

static const char *watch_order(void)
{
	struct epoll_event event = { EPOLLIN, { .fd = 0 } };
	char path[64];
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_UNBLOCK, &set, NULL);	/* forgets one of before */
	sigprocmask(SIG_BLOCK, &set, NULL);
	CHECK((epoll = epoll_create1(EPOLL_CLOEXEC)) >= 0);
	CHECK((deaths = signalfd(-1, &set, SFD_CLOEXEC)) >= 0);
	CHECK((closes = inotify_init1(IN_CLOEXEC)) >= 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", lockfd);
	CHECK(inotify_add_watch(closes, path, IN_CLOSE) >= 0);
	event.data.fd = deaths;
	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, deaths, &event));
	event.data.fd = closes;
	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, closes, &event));
	return NULL;
}

/* Kills the VMM, and sees whether its memory went before it did, or the helper died. */
static const char *kill_and_order(int *synchronous)
{
	struct signalfd_siginfo info;
	struct epoll_event first;

	TRY(watch_order());
	CHECK(by_kill() && waitpid(vmm, NULL, 0) == vmm);
	CHECK_INT(epoll_wait(epoll, &first, 1, 0), ==, 1);
	CHECK_INT(read(deaths, &info, sizeof(info)), ==, sizeof(info));
	*synchronous = first.data.fd == closes || (pid_t)info.ssi_pid != vmm;
	close(epoll);
	close(deaths);
	close(closes);
	return NULL;
}

static void only_threads(void) { make_threads(threads_wanted); }

static const char *race(void body(void), int threads, int runs)
{
	int i, synchronous, total = 0;

	threads_wanted = threads;
	TRY(spawn(only_threads));
	TRY(kill_and_order(&synchronous));
	CHECK(synchronous);	/* without a helper: so this judge sees it */
	for (i = 0; i < runs; i++) {
		TRY(spawn(body));
		TRY(kill_and_order(&synchronous));
		CHECK(gone(sh->helper));
		total += synchronous;
	}
	if (total)
		fprintf(stderr, "# %d threads: %d of %d runs synchronous\n", threads, total, runs);
	CHECK_INT(total, ==, 0);
	return NULL;
}

static const char *race_4(void) { return race(start_with_threads, 4, effort(200)); }
static const char *race_64(void) { return race(start_with_threads, 64, effort(100)); }
static const char *race_512(void) { return race(start_with_threads, 512, effort(20)); }

#ifdef __GLIBC__
/* A thread that takes long to exit, and before it lets go of the memory: the
 * kernel walks its list of robust mutexes, each of which has a waiter. */
static void *robust_sleeper(void *arg)
{
	pthread_mutex_t *held = calloc(2000, sizeof(*held));
	pthread_mutexattr_t attr;
	int i;

	MUST(held && !pthread_mutexattr_init(&attr) &&
		!pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST));
	for (i = 0; i < 2000; i++) {
		MUST(!pthread_mutex_init(&held[i], &attr) && !pthread_mutex_lock(&held[i]));
		*(unsigned *)(void *)&held[i] |= 0x80000000U;	/* FUTEX_WAITERS */
	}
	return sleeper(arg);
}

static void start_with_slow_threads(void)
{
	pthread_t t;
	int i;

	for (i = 0; i < 128; i++)
		MUST(!pthread_create(&t, NULL, robust_sleeper, NULL));
	MUST(UNTIL(deadline, sh->counter >= 128));
	start();
}

static const char *race_slow(void)
{
	return race(start_with_slow_threads, 128, effort(60));
}
#else
static const char *race_slow(void)
{
	SKIP("only for glibc, as it knows its mutexes");
}
#endif

static void *last_thread(void *arg)
{
	(void)arg;
	await_go();
	_exit(0);
}

static void main_thread_leaves(void)
{
	pthread_t t;

	start();
	MUST(!pthread_create(&t, NULL, last_thread, NULL));
	ready();
	pthread_exit(NULL);
}

static const char *main_thread_exits(void)
{
	pid_t helper;
	long before;

	TRY(spawn(main_thread_leaves));
	helper = sh->helper;
	CHECK(UNTIL(deadline, state(vmm) == 'Z'));
	before = switches(helper);
	CHECK(freeze(helper) && thaw(helper));
	if (!has_pidfd(helper))	/* see it time out and stay */
		CHECK(UNTIL(deadline, switches(helper) > before + 5));
	CHECK(asleep(helper) && mm_held());
	return ended_by(by_go, 0);
}

static void start_in_group(void) { MUST(!setpgid(0, 0)); start(); }

static const char *killed_by_group(void)
{
	TRY(spawn(start_in_group));
	return ended_by(by_group, SIGKILL);
}

static int terminal = -1;
static void start_on_terminal(void)
{
	int fd;

	MUST_INT(setsid(), >, 0);
	fd = open(ptsname(terminal), O_RDWR);
	MUST(fd >= 0 && !ioctl(fd, TIOCSCTTY, 0));
	close(terminal);
	start();
}
static int by_interrupt(void) { return write(terminal, "\003", 1) == 1; }
static int by_hangup(void) { return !close(terminal); }

static const char *terminals(void)
{
	terminal = posix_openpt(O_RDWR | O_NOCTTY);
	if (terminal < 0 || grantpt(terminal) || unlockpt(terminal))
		return cannot_open("/dev/ptmx");
	TRY(spawn(start_on_terminal));
	TRY(ended_by(by_interrupt, SIGINT));
	close(terminal);
	CHECK((terminal = posix_openpt(O_RDWR | O_NOCTTY)) >= 0 && !unlockpt(terminal));
	TRY(spawn(start_on_terminal));
	return ended_by(by_hangup, SIGHUP);
}

/* Anywhere on its way out. */
static const char *stopped(void (*body)(void), int runs)
{
	int i;

	for (i = 0; i < runs; i++) {
		struct timespec t = { 0, i * 50000 };

		TRY(spawn(body));
		CHECK(by_kill());
		nanosleep(&t, NULL);
		signal_one(sh->helper, SIGSTOP);
		CHECK(reap(vmm, NULL));
		signal_one(sh->helper, SIGCONT);
		CHECK(leaves(sh->helper));	/* and not by SIGSYS */
	}
	return NULL;
}

static const char *stopped_in_pause(void) { return stopped(start, 40); }

static const struct test ending_tests[] = {
	{ "ends", ends, "exit, abort, SIGSEGV, SIGTERM, SIGKILL: reaped while the stopped helper has the memory" },
	{ "starter_thread_ends", starter_thread_ends, "the thread that called start ends, its stack and TLS are unmapped" },
	{ "race_4", race_4, "4 threads killed, hundreds of times: never synchronous" },
	{ "race_64", race_64, "64 threads likewise" },
	{ "race_512", race_512, "512 threads likewise" },
	{ "race_slow", race_slow, "128 threads that are long in exiting, likewise" },
	{ "main_thread_exits", main_thread_exits, "the main thread leaves, the helper stays until the last one" },
	{ "killed_by_group", killed_by_group, "kill -9 of the process group" },
	{ "terminals", terminals, "^C and a hangup of the terminal" },
	{ "stopped_in_pause", stopped_in_pause, "stopped and continued on its way out" },
	{ NULL, NULL, NULL }
};
