/*
 * scenarios - the ways that a VMM and its helper live and die, a test each
 *
 *	scenarios [NAME=VALUE...] [TEST...]	these, or all
 *	scenarios -n			say how many there are
 *	scenarios --refused ERRNO	see refused()
 *
 * Prints "ok - NAME: ..." or "not ok - ..." a line, with "# SKIP why" where
 * something is missing.  Exit status 1 if one failed.
 *
 * A test is a function that runs in a process of its own, the judge, which is
 * the subreaper of the VMM that it starts and of the VMM's helper.  Whether an
 * address space still exists is asked of the kernel: a mapped file keeps its
 * flock until the last process that has it mapped has torn it down.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ATD_PATIENCE 60		/* for hung_reader, which would take an hour */
#include "../async_teardown.h"

enum { NOBODY = 65534 };

/* From the environment: MIB, and for emulated machines SLOW, a factor for the
 * deadline; also RUNS, see effort(). */
static int mib = 4;		/* how much memory a VMM has */
static double deadline = 120;	/* seconds, for whatever has to happen */

/* Between the judge and its VMMs. */
static struct {
	volatile int ready, helper, second, result, go, alive, counter;
	volatile int entered, passed, attempt, target, daemon;
	char broken[256];
	char verdict[256], cgroup[128];	/* from here on one a test, not one a VMM */
} *sh;

static int lockfd = -1;
static pid_t vmm;

/* A check that fails ends the test; in a VMM it tells the judge. */
static char *broken(const char *file, int line, const char *what)
{
	char whole[sizeof(sh->broken)] = "";

	/* The judge reads as soon as there is a first character. */
	snprintf(whole, sizeof(whole), "%s:%d: %s (errno %d)", file, line, what, errno);
	memcpy(sh->broken + 1, whole + 1, sizeof(whole) - 1);
	__atomic_store_n(sh->broken, *whole, __ATOMIC_RELEASE);
	return sh->broken;
}
#define CHECK(c) do { if (!(c)) return broken(__FILE__, __LINE__, #c); } while (0)
#define MUST(c) do { if (!(c)) { broken(__FILE__, __LINE__, #c); _exit(99); } } while (0)
#define TRY(c) do { const char *r_ = (c); if (r_) return r_; } while (0)
#define SKIP(why) return "SKIP " why

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void nap(void)
{
	struct timespec t = { 0, 500000 };

	nanosleep(&t, NULL);
}

/* Waits until c holds; false when the deadline passes first. */
#define UNTIL(seconds, c) __extension__ ({ \
	double end_ = now() + (seconds); \
	int holds_; \
	while (!(holds_ = !!(c)) && now() < end_) \
		nap(); \
	holds_; })

/* A PID that nobody has stored yet is 0, and that is this process group. */
static int signal_one(pid_t pid, int sig)
{
	return pid > 1 ? kill(pid, sig) : (errno = ESRCH, -1);
}

static int reap(pid_t pid, int *status)
{
	int unused;

	return UNTIL(deadline, waitpid(pid, status ? status : &unused, WNOHANG | __WALL) == pid);
}

static int mm_held(void)
{
	if (flock(lockfd, LOCK_EX | LOCK_NB))
		return 1;
	flock(lockfd, LOCK_UN);
	return 0;
}

/* Whoever reads its /proc/PID at that moment, say a ps, holds it a little longer. */
static int mm_freed(void)
{
	return UNTIL(deadline, !mm_held());
}

/* It ends in time, and by itself. */
static int leaves(pid_t helper)
{
	int st;

	return UNTIL(deadline, waitpid(helper, &st, WNOHANG | __WALL) == helper) && st == 0;
}

/* No helper, no zombie, memory back. */
static int gone(pid_t helper)
{
	return leaves(helper) && mm_freed();
}

/* How often to repeat what is repeated. */
static int effort(int usual)
{
	const char *s = getenv("RUNS");

	return s ? atoi(s) : usual;
}

static char *slurp(const char *format, pid_t pid)
{
	static char buf[65536];
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), format, pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
	buf[n > 0 ? n : 0] = 0;
	if (fd >= 0)
		close(fd);
	return buf;
}

/* The value of a line in /proc/PID/status, "" if there is none. */
static const char *status(pid_t pid, const char *key)
{
	static char value[128];
	char *at = slurp("/proc/%d/status", pid);
	size_t n = strlen(key);

	*value = 0;
	for (; at && *at; at = strchr(at, '\n'), at += !!at)
		if (!strncmp(at, key, n) && at[n] == ':') {
			snprintf(value, sizeof(value), "%.*s", (int)strcspn(at + n + 1, "\n"), at + n + 1);
			memmove(value, value + strspn(value, " \t"), strlen(value));
			break;
		}
	return value;
}

static char state(pid_t pid)
{
	return *status(pid, "State");
}

static long rss_kib(pid_t pid)
{
	const char *anon = status(pid, "RssAnon");	/* Linux 4.5 */

	return atol(*anon ? anon : status(pid, "VmRSS"));
}

/* Before, what kills a process as if to dump core kills all that share its memory. */
static int before_5_16(void)
{
	struct utsname u;
	int major = 0, minor = 0;

	uname(&u);
	sscanf(u.release, "%d.%d", &major, &minor);
	return major < 5 || (major == 5 && minor < 16);
}

static long switches(pid_t pid)
{
	return atol(status(pid, "voluntary_ctxt_switches")) +
		atol(status(pid, "nonvoluntary_ctxt_switches"));
}

static int open_files(pid_t pid)
{
	char path[64];
	struct dirent *e;
	DIR *d;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	if (!(d = opendir(path)))
		return -1;
	while ((e = readdir(d)))
		n += *e->d_name != '.';
	closedir(d);
	return n;
}

static int has_pidfd(pid_t helper)
{
	return open_files(helper) == 1;
}

/* Puts a process to sleep where nothing but SIGCONT and SIGKILL wakes it. */
static int freeze(pid_t pid)
{
	return !signal_one(pid, SIGSTOP) && UNTIL(deadline, state(pid) == 'T');
}

/* It waits, and is not just about to: without pidfd it polls. */
static int asleep(pid_t pid)
{
	return UNTIL(deadline, state(pid) == 'S');
}

static int thaw(pid_t pid)
{
	return !signal_one(pid, SIGCONT) && asleep(pid);
}

/* Makes this process's address space one that mm_held and the RSS can see. */
static void hold_memory(void)
{
	char path[64];
	char *block;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", lockfd);
	fd = open(path, O_RDWR);
	MUST(fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB));
	MUST(mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
	close(fd);
	close(lockfd);
	block = malloc((size_t)mib << 20);
	MUST(block);
	madvise((char *)(((uintptr_t)block + 4095) & ~(uintptr_t)4095), ((size_t)mib << 20) - 4096,
		MADV_NOHUGEPAGE);
	memset(block, 0x5a, (size_t)mib << 20);
}

/* Tells the judge that the VMM is what the test wants it to be, and stays so. */
static void ready(void)
{
	__atomic_store_n(&sh->ready, 1, __ATOMIC_SEQ_CST);
}

static void start(void)
{
	int ret;

	errno = 77;
	ret = sh->result = async_teardown_start();
	MUST(errno == 77);
	MUST(ret > 0);
	sh->helper = ret;
}

static const char *spawn(void (*body)(void))
{
	siginfo_t dead;

	memset(sh, 0, offsetof(__typeof__(*sh), verdict));
	if (lockfd >= 0)
		close(lockfd);
	lockfd = memfd_create("lock", MFD_CLOEXEC);
	CHECK(lockfd >= 0 && !ftruncate(lockfd, 4096));
	vmm = fork();
	CHECK(vmm >= 0);
	if (!vmm) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);	/* the judge's end is its own */
		signal(SIGINT, SIG_DFL);	/* ignored in a shell's background job */
		signal(SIGHUP, SIG_DFL);
		hold_memory();
		body();
		ready();
		for (;;)
			pause();
	}
	dead.si_pid = 0;
	if (!UNTIL(deadline, sh->ready || *sh->broken || (waitid(P_PID, (id_t)vmm, &dead,
			WEXITED | WNOHANG | WNOWAIT) == 0 && dead.si_pid == vmm && !sh->daemon))) {
		signal_one(vmm, SIGKILL);
		return "the VMM was not ready in time";
	}
	if (!sh->ready && !*sh->broken)
		snprintf(sh->broken, sizeof(sh->broken), "the VMM died of signal %d", dead.si_status);
	return *sh->broken ? sh->broken : NULL;
}

/* Ends the VMM and sees that the helper, which cannot run then, has the memory. */
static const char *ended_by(int how(void), int expect)
{
	pid_t helper = sh->helper;
	int st;

	CHECK(freeze(helper));
	CHECK(how());
	if ((expect == SIGABRT || expect == SIGSEGV) && before_5_16())
		signal_one(helper, SIGCONT);
	CHECK(reap(vmm, &st));
	CHECK(WIFSIGNALED(st) ? WTERMSIG(st) == expect : WEXITSTATUS(st) == -expect);
	if ((expect == SIGABRT || expect == SIGSEGV) && before_5_16()) {
		CHECK(reap(helper, &st) && mm_freed());
		return NULL;
	}
	CHECK(mm_held());
	CHECK(rss_kib(helper) >= mib * 1024L);
	CHECK(!signal_one(helper, SIGCONT));
	CHECK(gone(helper));
	return NULL;
}

static int by_kill(void) { return !signal_one(vmm, SIGKILL); }
static int by_group(void) { return vmm > 1 && !kill(-vmm, SIGKILL); }
static int by_go(void) { return sh->go = 1; }

static const char *killed_asynchronously(void)
{
	return ended_by(by_kill, SIGKILL);
}

/* Kills a VMM without a helper: nobody is left who could free its memory later. */
static const char *killed_synchronously(void)
{
	CHECK(mm_held());
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	CHECK(mm_freed());
	return NULL;
}

static void await_go(void)
{
	while (!sh->go)
		nap();
}

/* --- how a VMM ends -------------------------------------------------- */

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

static void start_as_root_then_drop(void)
{
	start();
	MUST(!setgroups(0, NULL) && !setresgid(NOBODY, NOBODY, NOBODY) &&
		!setresuid(NOBODY, NOBODY, NOBODY));
	sh->second = async_teardown_stop();
}

static const char *drops_uid(void)
{
	pid_t helper;

	if (geteuid())
		SKIP("needs root");
	TRY(spawn(start_as_root_then_drop));
	CHECK(sh->second == -EPERM);
	CHECK(asleep(sh->helper));
	TRY(killed_asynchronously());
	/* and once not stopped, so that nothing but the end itself wakes it */
	TRY(spawn(start_as_root_then_drop));
	helper = sh->helper;
	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
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

static double cpu(const struct rusage *u)
{
	return (double)(u->ru_utime.tv_sec + u->ru_stime.tv_sec) +
		(double)(u->ru_utime.tv_usec + u->ru_stime.tv_usec) / 1e6;
}

/*
 * Who tore down?  Not stopped here, for that would hide the race.  The helper has
 * done it if the memory is still held when wait returns; if it is not, because the
 * judge was late, then the helper has used the CPU time that it takes, or next to
 * none.
 */
static const char *race(void body(void), int threads, int runs)
{
	struct rusage use;
	double reference = 0;
	pid_t helper;
	int i, st, held, synchronous = 0;

	mib *= 4;	/* for some CPU time to compare */
	threads_wanted = threads;
	for (i = -3; i < runs; i++) {
		TRY(spawn(body));
		helper = sh->helper;
		if (i < 0)
			CHECK(freeze(helper));
		CHECK(by_kill() && waitpid(vmm, NULL, 0) == vmm);
		held = mm_held();
		if (i < 0)
			CHECK(!signal_one(helper, SIGCONT));
		CHECK(UNTIL(deadline, wait4(helper, &st, WNOHANG | __WALL, &use) == helper));
		if (i < 0 && (reference == 0 || cpu(&use) < reference))
			reference = cpu(&use);
		else if (i >= 0)
			synchronous += !held && cpu(&use) < reference / 3;
	}
	if (synchronous)
		fprintf(stderr, "# %d threads: %d of %d runs synchronous\n", threads, synchronous, runs);
	CHECK(synchronous == 0);
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
	SKIP("knows only glibc's mutexes");
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

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	void *p[64] = { NULL };

	while (!sh->go) {
		seed = seed * 1103515245 + 12345;
		free(p[seed >> 16 & 63]);
		p[seed >> 16 & 63] = malloc(seed >> 20);
		sh->alive++;
	}
	return NULL;
}

static void start_beside_churning_heap(void)
{
	pthread_t t[4];
	int i, before;

	for (i = 0; i < 4; i++)
		MUST(!pthread_create(&t[i], NULL, churn, (void *)(uintptr_t)(i + 1)));
	for (i = 0; i < effort(200); i++) {
		errno = 77;
		MUST(async_teardown_start() > 0 && errno == 77);
		free(malloc((size_t)i));
		MUST(async_teardown_stop() == 0 && errno == 77);
	}
	before = sh->alive;
	MUST(UNTIL(deadline, sh->alive > before + 10000));
	sh->go = 1;
	for (i = 0; i < 4; i++)
		MUST(!pthread_join(t[i], NULL));
	start();
}

static const char *churning_heap(void)
{
	int i;

	for (i = 0; i < 5; i++) {	/* each with a deadline of its own */
		TRY(spawn(start_beside_churning_heap));
		TRY(killed_asynchronously());
	}
	return NULL;
}

static void start_and_fork(void)
{
	pid_t child;

	start();
	child = fork();
	MUST(child >= 0);
	if (!child) {
		MUST(async_teardown_stop() == 0);	/* not its own to stop */
		MUST((sh->second = async_teardown_start()) > 0 && sh->second != sh->helper);
		sh->passed = 1;
		for (;;)
			pause();
	}
	sh->target = child;
	MUST(UNTIL(deadline, sh->passed));
}

static const char *forks(void)
{
	pid_t helper, child, childs;

	/* the child dies first, */
	TRY(spawn(start_and_fork));
	CHECK(asleep(sh->helper) && asleep(sh->second));
	CHECK(!signal_one(sh->target, SIGKILL));
	CHECK(leaves(sh->second));
	CHECK(freeze(sh->helper) && thaw(sh->helper));
	helper = sh->helper;
	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
	/* and the parent */
	TRY(spawn(start_and_fork));
	helper = sh->helper, childs = sh->second, child = sh->target;
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(leaves(helper));
	CHECK(freeze(childs) && thaw(childs));
	CHECK(!signal_one(child, SIGKILL) && reap(child, NULL) && gone(childs));
	return NULL;
}

static void *start_and_stop(void *arg)
{
	(void)arg;
	while (!sh->go) {
		async_teardown_start();
		async_teardown_stop();
	}
	return NULL;
}

static void fork_while_starting(void)
{
	pthread_t t;
	pid_t child;
	int i, st;

	MUST(!pthread_create(&t, NULL, start_and_stop, NULL));
	for (i = 0; i < effort(300); i++) {
		child = fork();
		if (!child) {
			alarm((unsigned)deadline);
			_exit(async_teardown_start() > 0 && async_teardown_stop() == 0 ? 0 : 1);
		}
		MUST(child > 0 && waitpid(child, &st, 0) == child && st == 0);
	}
	sh->go = 1;
	MUST(!pthread_join(t, NULL));
}

static const char *forks_while_starting(void)
{
	TRY(spawn(fork_while_starting));
	return killed_synchronously();
}

static void daemonize(void)
{
	sh->daemon = 1;
	if (fork())
		_exit(0);
	setsid();
	sh->target = getpid();
}

static void start_as_daemon(void) { daemonize(); start(); }
static void start_before_daemon(void) { start(); daemonize(); }

static const char *daemonizes(void)
{
	pid_t helper;

	TRY(spawn(start_as_daemon));
	CHECK(reap(vmm, NULL));
	vmm = sh->target;
	TRY(killed_asynchronously());

	TRY(spawn(start_before_daemon));
	helper = sh->helper;
	CHECK(reap(vmm, NULL));
	CHECK(leaves(helper));
	vmm = sh->target;
	return killed_synchronously();
}

static void exec_sleep(void)
{
	if (sh->counter)
		sh->result = async_teardown_stop();
	ready();
	execl("/proc/self/exe", "scenarios", "--pause", (char *)NULL);
	_exit(98);
}

static void start_stop_exec(void) { start(); sh->counter = 1; exec_sleep(); }
static void start_exec(void) { start(); exec_sleep(); }

static const char *execs(void)
{
	pid_t helper;
	int polls;

	TRY(spawn(start_stop_exec));
	CHECK(sh->result == 0);
	CHECK(UNTIL(deadline, strstr(slurp("/proc/%d/cmdline", vmm) + 10, "--pause")));
	CHECK(mm_freed());	/* nothing left of the old memory */
	CHECK(by_kill() && reap(vmm, NULL));

	/* without stop it stays, but no longer than the process; unless it polls */
	TRY(spawn(start_exec));
	helper = sh->helper;
	polls = !has_pidfd(helper);
	CHECK(UNTIL(deadline, strstr(slurp("/proc/%d/cmdline", vmm) + 10, "--pause")));
	if (polls)
		CHECK(mm_freed() && UNTIL(deadline, state(helper) == 'Z') && asleep(vmm));
	else
		CHECK(asleep(helper) && mm_held());
	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
	return NULL;
}

static void start_and_stop_often(void)
{
	long before = 0;
	int i, ret;

	MUST(async_teardown_stop() == 0);
	for (i = 0; i < effort(250); i++) {
		ret = async_teardown_start();
		MUST(ret > 0 && async_teardown_start() == ret);
		MUST(async_teardown_stop() == 0 && async_teardown_stop() == 0);
		MUST(signal_one(ret, 0) < 0 && errno == ESRCH);
		if (i == 0)
			before = rss_kib(getpid());
	}
	MUST(rss_kib(getpid()) <= before + 512);	/* a page each would be 1000 */
	MUST(waitpid(-1, NULL, __WALL | WNOHANG) < 0 && errno == ECHILD);
}

static const char *start_stop(void)
{
	int i;

	for (i = 0; i < 4; i++) {	/* each with a deadline of its own */
		TRY(spawn(start_and_stop_often));
		TRY(killed_synchronously());
	}
	return NULL;
}

/* --- groups and terminals -------------------------------------------- */

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

	MUST(setsid() > 0);
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
		SKIP("no pseudo-terminals");
	TRY(spawn(start_on_terminal));
	TRY(ended_by(by_interrupt, SIGINT));
	close(terminal);
	CHECK((terminal = posix_openpt(O_RDWR | O_NOCTTY)) >= 0 && !unlockpt(terminal));
	TRY(spawn(start_on_terminal));
	return ended_by(by_hangup, SIGHUP);
}

static void count_sigchld(int sig) { (void)sig; sh->counter++; }

static void wait_for_children(void)
{
	pid_t child;
	int i;

	signal(SIGCHLD, count_sigchld);
	start();
	MUST(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	for (i = 0; i < 3; i++)
		if (!fork())
			_exit(0);
	for (i = 0; (child = waitpid(-1, NULL, 0)) > 0 || errno == EINTR; )
		if (child > 0) {
			MUST(child != sh->helper);
			i++;
		}
	MUST(i == 3 && errno == ECHILD);
	MUST(UNTIL(deadline, sh->counter > 0));
	sh->counter = 0;
	signal_one(sh->helper, SIGKILL);
	MUST(UNTIL(deadline, state(sh->helper) == 'Z'));
	MUST(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	MUST(async_teardown_stop() == 0);
	MUST(sh->counter == 0);
}

static const char *wait_loops(void)
{
	TRY(spawn(wait_for_children));
	return killed_synchronously();
}

/* --- control groups --------------------------------------------------- */

static int put(const char *file, const char *text)
{
	char path[192];
	int fd, ok;

	snprintf(path, sizeof(path), "%s/%s", sh->cgroup, file);
	if ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
		return 0;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

static int join(pid_t pid)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pid);
	return put("cgroup.procs", text);
}

/* A control group of our own under one of these that has the file. */
static int make_cgroup(const char *const *roots, const char *file)
{
	char path[192];

	for (; *roots; roots++) {
		snprintf(sh->cgroup, sizeof(sh->cgroup), "%s/async-teardown-%d", *roots, getpid());
		if (mkdir(sh->cgroup, 0755))
			continue;
		snprintf(path, sizeof(path), "%s/%s", sh->cgroup, file);
		if (!access(path, W_OK))
			return 1;
		rmdir(sh->cgroup);
	}
	return 0;
}

static void start_then_eat(void)
{
	size_t n;

	MUST(join(getpid()));
	start();
	ready();
	await_go();
	for (n = 0; n < 4096; n++)
		memset(malloc(1 << 20), 1, 1 << 20);
}

static const char *oom(void)
{
	static const char *const v1[] = { "/sys/fs/cgroup/memory", NULL };
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	const char *r;
	pid_t helper;
	int st;

	if (make_cgroup(v1, "memory.limit_in_bytes"))
		put("memory.limit_in_bytes", "100663296");
	else if (make_cgroup(v2, "memory.max"))
		put("memory.max", "100663296"), put("memory.swap.max", "0");
	else
		SKIP("no memory control group can be made");
	r = spawn(start_then_eat);
	if (r)
		return r;
	helper = sh->helper;
	sh->go = 1;
	CHECK(reap(vmm, &st));
	CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
	/* the kernel kills both, in whichever order */
	CHECK(UNTIL(deadline, waitpid(helper, NULL, WNOHANG | __WALL) == helper) && mm_freed());
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

static const char *frozen(void)
{
	static const char *const v1[] = { "/sys/fs/cgroup/freezer", NULL };
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	const char *file, *on = "FROZEN", *off = "THAWED";
	char path[192];
	int i;

	if (make_cgroup(v1, file = "freezer.state"))
		;
	else if (make_cgroup(v2, file = "cgroup.freeze"))
		on = "1", off = "0";
	else
		SKIP("no control group with a freezer can be made");
	TRY(spawn(start));
	CHECK(join(sh->helper));
	for (i = 0; i < 5; i++) {
		CHECK(put(file, on));
		snprintf(path, sizeof(path), "%s/%s", sh->cgroup, *on == '1' ? "cgroup.events" : file);
		CHECK(UNTIL(deadline, strstr(slurp(path, 0), *on == '1' ? "frozen 1" : "FROZEN")));
		CHECK(put(file, off));
		CHECK(thaw(sh->helper));
	}
	/* The VMM dies while the helper is frozen: reaped all the same. */
	CHECK(put(file, on));
	CHECK(UNTIL(deadline, strstr(slurp(path, 0), *on == '1' ? "frozen 1" : "FROZEN")));
	CHECK(by_kill() && reap(vmm, NULL) && mm_held());
	CHECK(rmdir(sh->cgroup) && errno == EBUSY);
	CHECK(put(file, off));
	CHECK(gone(sh->helper));
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

static void start_in_cgroup(void) { MUST(join(getpid())); start(); }

/* As a supervisor does it whose unit has to be empty when the VMM is gone. */
static const char *other_cgroup(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	char vmms[sizeof(sh->cgroup)], path[192];
	pid_t helper;
	FILE *f;

	if (!make_cgroup(roots, "cgroup.procs"))
		SKIP("no control group of version 2 can be made");
	TRY(spawn(start_in_cgroup));
	helper = sh->helper;
	snprintf(vmms, sizeof(vmms), "%.100s", sh->cgroup);
	strncat(sh->cgroup, "-teardown", sizeof(sh->cgroup) - strlen(sh->cgroup) - 1);
	CHECK(!mkdir(sh->cgroup, 0755) && join(helper));
	CHECK(freeze(helper));
	snprintf(path, sizeof(path), "%s/cgroup.kill", vmms);	/* Linux 5.14 */
	f = fopen(path, "w");
	CHECK(f ? fputs("1", f) >= 0 && !fclose(f) : by_kill());
	CHECK(reap(vmm, NULL) && mm_held());
	CHECK(UNTIL(deadline, !rmdir(vmms)));	/* empty, with the helper still at work */
	CHECK(state(helper) == 'T');
	CHECK(!signal_one(helper, SIGCONT) && gone(helper));
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

/* --- how a helper lives ----------------------------------------------- */

static void restart(void)
{
	start();
	ready();
	await_go();
	sh->second = async_teardown_start();
	sh->go = 0;
}

/* It may have left the memory and be no zombie yet. */
static void restart_at_once(void)
{
	double end;
	int i;

	for (i = 0; i < effort(100); i++) {
		start();
		MUST(!signal_one(sh->helper, SIGKILL));
		for (end = now() + deadline; atd_shared.alive && now() < end; )
			;
		start();
		MUST(UNTIL(deadline, async_teardown_stop() == 0));
		MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	}
	start();
}

static const char *helper_killed(void)
{
	pid_t first;

	TRY(spawn(restart));
	first = sh->helper;
	CHECK(!signal_one(first, SIGKILL) && UNTIL(deadline, state(first) == 'Z'));
	CHECK(asleep(vmm) && mm_held());
	sh->go = 1;
	CHECK(UNTIL(deadline, !sh->go));
	CHECK(sh->second > 0 && sh->second != first);
	CHECK(signal_one(first, 0) && errno == ESRCH);	/* and the first is reaped */
	sh->helper = sh->second;
	TRY(killed_asynchronously());

	TRY(spawn(start));
	CHECK(!signal_one(sh->helper, SIGKILL) && UNTIL(deadline, state(sh->helper) == 'Z'));
	CHECK(by_kill() && reap(vmm, NULL) && reap(sh->helper, NULL) && mm_freed());

	TRY(spawn(restart_at_once));
	return killed_asynchronously();
}

static const char *signals(void)
{
	int i;

	TRY(spawn(start));
	for (i = 1; i <= 64; i++)
		if (i != SIGKILL && i != SIGSTOP)
			CHECK(!signal_one(sh->helper, i));
	/* what was pending would be seen to before it sleeps again */
	for (i = 0; i < 5; i++)
		CHECK(freeze(sh->helper) && thaw(sh->helper));
	CHECK(mm_held());
	return killed_asynchronously();
}

static const char *stopped_in_pause(void)
{
	int i;

	/* anywhere on its way out, the pause before exiting included */
	for (i = 0; i < 40; i++) {
		struct timespec t = { 0, i * 50000 };

		TRY(spawn(start));
		CHECK(by_kill());
		nanosleep(&t, NULL);
		signal_one(sh->helper, SIGSTOP);
		CHECK(reap(vmm, NULL));
		signal_one(sh->helper, SIGCONT);
		CHECK(leaves(sh->helper));	/* and not by SIGSYS */
	}
	return NULL;
}

static const char *idle(void)
{
	struct timespec t = { 10, 0 };
	double since;
	long before;

	TRY(spawn(start));
	CHECK(asleep(sh->helper));
	if (!has_pidfd(sh->helper)) {	/* it has to poll: stays, and does so seldom */
		t.tv_sec = 2;
		since = now();
		before = atol(status(sh->helper, "voluntary_ctxt_switches"));
		nanosleep(&t, NULL);
		CHECK(asleep(sh->helper));
		CHECK(atol(status(sh->helper, "voluntary_ctxt_switches")) - before <=
			4 + 2 * (now() - since));
		return killed_asynchronously();
	}
	before = switches(sh->helper);
	nanosleep(&t, NULL);
	CHECK(before > 0 && switches(sh->helper) == before);
	return killed_asynchronously();
}

static void start_in_own_place(void)
{
	FILE *f;

	MUST(!chdir("/proc"));
	start();
	MUST((f = fopen("/proc/self/oom_score_adj", "w")) && fputs("321", f) >= 0 && !fclose(f));
}

static const char *what_it_is(void)
{
	char path[64], text[64], before[4096];
	ssize_t n;

	TRY(spawn(start_in_own_place));
	snprintf(text, sizeof(text), "cleanup/%d", vmm);
	CHECK(!strcmp(status(sh->helper, "Name"), text));
	CHECK(getsid(sh->helper) == sh->helper && getpgid(sh->helper) == sh->helper);
	CHECK(atoi(status(sh->helper, "PPid")) == vmm);
	snprintf(path, sizeof(path), "/proc/%d/cwd", sh->helper);
	n = readlink(path, text, sizeof(text));
	CHECK(n == 1 && *text == '/');
	/* charged where the VMM is charged, and killed as readily */
	strcpy(before, slurp("/proc/%d/cgroup", vmm));
	CHECK(!strcmp(before, slurp("/proc/%d/cgroup", sh->helper)));
	CHECK(atoi(slurp("/proc/%d/oom_score_adj", sh->helper)) == 321);
	return killed_asynchronously();
}

/* From the capabilities to the filters. */
static const char *privileges(void)
{
	char *from = strstr(slurp("/proc/%d/status", getpid()), "CapInh");

	*strstr(from, "Speculation") = 0;
	return from;
}

static void start_sandboxed(void)
{
	char before[4096];

	MUST(prctl(PR_SET_DUMPABLE, 1) == 0);
	strcpy(before, privileges());
	start();
	MUST(prctl(PR_GET_DUMPABLE) == 1);
	MUST(!strcmp(before, privileges()));
}

static const char *sandbox(void)
{
	static const char *const keys[] = { "CapInh", "CapEff", "CapAmb" };
	size_t i;

	TRY(spawn(start_sandboxed));
	for (i = 0; i < 3; i++)
		CHECK(strtoull(status(sh->helper, keys[i]), NULL, 16) == 0);
	if (*status(sh->helper, "NoNewPrivs"))	/* Linux 4.10 */
		CHECK(atoi(status(sh->helper, "NoNewPrivs")) == 1);
	CHECK(atoi(status(sh->helper, "Seccomp")) == 2);
	CHECK(strstr(slurp("/proc/%d/limits", sh->helper), "Max core file size        1                    1") ||
		strstr(slurp("/proc/%d/limits", sh->helper), "Max core file size        0                    0"));
	/* all but SIGKILL and SIGSTOP, and the one that rt_sigtimedwait waits for */
	CHECK((strtoull(status(sh->helper, "SigBlk"), NULL, 16) | 1ULL << (SIGKILL - 1) |
		1ULL << (SIGSTOP - 1) | !has_pidfd(sh->helper)) == ~0ULL);
	return killed_asynchronously();
}

static void start_with_files(void)
{
	struct rlimit lim = { 16, 16 };
	int fd[2], i;

	MUST(!pipe(fd));
	for (i = 0; i < 900; i++)
		MUST(dup(0) >= 0);
	/* above where the limit will be */
	MUST(!setrlimit(RLIMIT_NOFILE, &lim));
	start();
	/* the caller still has them */
	MUST(write(fd[1], "x", 1) == 1);
	for (i = 0; i < 900; i++)
		MUST(fcntl(fd[1] + 1 + i, F_GETFD) == 0);
}

/* Nothing, or one pidfd. */
static const char *holds_no_file(pid_t helper)
{
	char path[64], link[64] = "";
	int n = open_files(helper);

	CHECK(n == 0 || n == 1);
	snprintf(path, sizeof(path), "/proc/%d/fd/0", helper);
	if (n == 1)
		CHECK(readlink(path, link, sizeof(link) - 1) > 0 && strstr(link, "pidfd"));
	return NULL;
}

static const char *holds_nothing(void)
{
	TRY(spawn(start_with_files));
	TRY(holds_no_file(sh->helper));
	return killed_asynchronously();
}

static void start_without_proc(void)
{
	struct rlimit lim;
	int i;

	for (i = 0; i < 100; i++)
		MUST(dup(0) >= 0);
	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max < 1 << 20 ? lim.rlim_max : 1 << 20;
	MUST(!setrlimit(RLIMIT_NOFILE, &lim) && fcntl(0, F_DUPFD, (int)lim.rlim_cur - 1) >= 0);
	MUST(!chroot("/dev") && !chdir("/") && access("/proc", F_OK));
	start();
}

static char jail[] = "/tmp/async-teardown-XXXXXX";
static void start_with_fake_proc(void)
{
	int i;

	for (i = 0; i < 100; i++)
		MUST(dup(0) >= 0);
	MUST(!chdir(jail) && !mkdir("proc", 0755) && !mkdir("proc/self", 0755) &&
		!mkdir("proc/self/fd", 0755) && !chroot("."));
	start();
	MUST(!rmdir("proc/self/fd") && !rmdir("proc/self") && !rmdir("proc"));
}

static const char *without_proc(void)
{
	if (geteuid())
		SKIP("chroot needs root");
	CHECK(mkdtemp(jail));
	TRY(spawn(start_with_fake_proc));
	TRY(holds_no_file(sh->helper));
	TRY(killed_asynchronously());
	CHECK(!rmdir(jail));
	TRY(spawn(start_without_proc));
	TRY(holds_no_file(sh->helper));
	return killed_asynchronously();
}

/* --- what start and stop leave alone, and how they fail ---------------- */

static long fd_map(void)
{
	long map = 0;
	int fd;

	for (fd = 0; fd < 63; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			map |= 1L << (fd % (int)(8 * sizeof(long)));
	return map;
}

static void compare_around_start(void)
{
	unsigned char mask[2][128];
	struct sigaction act[2];
	sigset_t set;
	long files = fd_map();
	int i;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX);
	sigprocmask(SIG_SETMASK, &set, NULL);
	for (i = 0; i < 3; i++) {
		memset(mask, 0, sizeof(mask));
		atd_syscall(__NR_rt_sigprocmask, 0, 0, atd_arg(mask[0]), ATD_SIGSET_BYTES, 0);
		sigaction(SIGHUP, NULL, &act[0]);
		errno = 77;
		if (i == 0)
			start();
		else
			MUST(async_teardown_stop() == 0);
		MUST(errno == 77);
		atd_syscall(__NR_rt_sigprocmask, 0, 0, atd_arg(mask[1]), ATD_SIGSET_BYTES, 0);
		sigaction(SIGHUP, NULL, &act[1]);
		MUST(!memcmp(mask[0], mask[1], sizeof(mask[0])) && fd_map() == files);
		MUST(act[0].sa_handler == act[1].sa_handler);
	}
}

static void start_with_signals_pending(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	MUST(!kill(getpid(), SIGTERM) && !kill(getpid(), SIGSYS));
	start();
	MUST(async_teardown_stop() == 0);
	start();
}

static const char *leaves_caller_alone(void)
{
	TRY(spawn(compare_around_start));
	TRY(killed_synchronously());
	TRY(spawn(start_with_signals_pending));
	return killed_asynchronously();
}

static pthread_barrier_t barrier;
static void *start_at_once(void *arg)
{
	pthread_barrier_wait(&barrier);
	*(int *)arg = async_teardown_start();
	return NULL;
}

static void start_in_all_threads(void)
{
	enum { N = 8 };
	pthread_t t[N];
	int pid[N], i, round;

	pthread_barrier_init(&barrier, NULL, N);
	for (round = 0; round < effort(100); round++) {
		for (i = 0; i < N; i++)
			MUST(!pthread_create(&t[i], NULL, start_at_once, &pid[i]));
		for (i = 0; i < N; i++)
			MUST(!pthread_join(t[i], NULL));
		for (i = 0; i < N; i++)
			MUST(pid[i] > 0 && pid[i] == pid[0]);
		MUST(async_teardown_stop() == 0);
		MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	}
}

static const char *two_threads_at_once(void)
{
	TRY(spawn(start_in_all_threads));
	return killed_synchronously();
}

static void fails_with(int error)
{
	long files = fd_map();

	errno = 77;
	sh->result = async_teardown_start();
	MUST(errno == 77 && fd_map() == files);
	MUST(sh->result == error);
	/* and has been reaped */
	MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	MUST(async_teardown_stop() == 0);
}

static void start_at_process_limit(void)
{
	struct rlimit none = { 0, 0 };

	if (!geteuid())
		MUST(!setresuid(54321, 54321, 54321));
	MUST(!setrlimit(RLIMIT_NPROC, &none));
	fails_with(-EAGAIN);
}

static const char *process_limit(void)
{
	TRY(spawn(start_at_process_limit));
	return killed_synchronously();
}

#define STMT(code, k) { code, 0, 0, k }
#define JEQ(k, yes, no) { 0x15, yes, no, k }
enum { ALLOW = 0x7fff0000, ERRNO = 0x50000, TRAP = 0x30000, KILL = 0 };

static void filter(const struct atd_insn *insns, size_t n)
{
	struct atd_prog prog;

	prog.len = (unsigned short)n;
	prog.insns = insns;
	if (geteuid())
		MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	MUST(!prctl(PR_SET_SECCOMP, 2, &prog, 0, 0));
}

/* Answers one call so, and allows all others. */
static void filter_one(unsigned nr, unsigned action)
{
	const struct atd_insn insns[] = {
		STMT(0x20, 0), JEQ(nr, 0, 1), STMT(6, action), STMT(6, ALLOW)
	};

	filter(insns, 4);
}

static void start_where_clone_is_refused(void)
{
	filter_one(__NR_clone, ERRNO | EPERM);
	fails_with(-EPERM);
}

static void start_where_setsid_kills(void)
{
	filter_one(__NR_setsid, KILL);
	fails_with(-EPERM);
}

static const char *seccomp_refuses(void)
{
	TRY(spawn(start_where_clone_is_refused));
	TRY(killed_synchronously());
	if (before_5_16())
		SKIP("where the filter kills the helper, this kernel kills the VMM; the rest was tried");
	TRY(spawn(start_where_setsid_kills));
	return killed_synchronously();
}

static void start_as_pid_1(void)
{
	MUST(getpid() == 1);
	atd_shared.lock = 1;	/* as if cloned into this namespace by another PID 1 */
	fails_with(-EOPNOTSUPP);
}

static void start_after_unshare(void)
{
	pid_t child;
	int st;

	MUST(!unshare(CLONE_NEWPID));
	fails_with(-EINVAL);
	child = fork();		/* PID 1 of the namespace, which start has left alone */
	if (!child)
		_exit(getpid() == 1 ? 0 : 1);
	MUST(child > 0 && waitpid(child, &st, 0) == child && st == 0);
}

static const char *pid_namespaces(void)
{
	TRY(spawn(start));	/* a judge that may unshare itself later */
	TRY(killed_asynchronously());
	if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID))
		SKIP("no PID namespace can be made");
	TRY(spawn(start_as_pid_1));
	TRY(killed_synchronously());
	return NULL;
}

static const char *unshared_pid_namespace(void)
{
	if (geteuid())
		SKIP("needs root");
	TRY(spawn(start_after_unshare));
	return killed_synchronously();
}

/*
 * What a filter installed before start has to allow.  The header lists the
 * same: every path, so that one list serves all kernels.
 */
static void start_under_exact_filter(void)
{
	static const unsigned listed[] = {
		/* in the VMM */
		__NR_rt_sigprocmask, __NR_getpid, __NR_wait4, __NR_clone, __NR_ppoll, __NR_kill,
		/* in the helper */
		__NR_setsid, ATD_NR_CLOSE_RANGE, __NR_unshare, __NR_openat, __NR_getdents64,
		__NR_close, __NR_chdir, __NR_prctl, ATD_NR_PIDFD_OPEN, __NR_rt_sigtimedwait,
		__NR_getppid, __NR_capget, __NR_capset, __NR_prlimit64, __NR_exit_group,
		/* in the thread between them */
		__NR_exit,
		/* with RAM, when the VMM is gone */
		__NR_munmap, __NR_madvise, __NR_timer_create, __NR_timer_settime,
	};
	enum { N = sizeof(listed) / sizeof(listed[0]) };
	struct atd_insn insns[2 * N + 2] = { STMT(0x20, 0) };
	int i;

	for (i = 0; i < N; i++) {
		insns[1 + 2 * i] = (struct atd_insn)JEQ(listed[i], 0, 1);
		insns[2 + 2 * i] = (struct atd_insn)STMT(6, ALLOW);
	}
	insns[1 + 2 * N] = (struct atd_insn)STMT(6, KILL);
	filter(insns, 2 * N + 2);
	MUST(async_teardown_ram(hold_memory, 1) == 0);
	for (i = 0; i < 3; i++) {
		sh->helper = async_teardown_start();
		sh->second = async_teardown_stop();
	}
	sh->helper = async_teardown_start();
	ready();
	for (;;)	/* in nothing that is not listed */
		atd_sleep_us(1000);
}

static const char *exact_filter(void)
{
	int helper;

	TRY(spawn(start_under_exact_filter));
	CHECK(sh->second == 0 && sh->helper > 0);
	helper = sh->helper;
	if (status(helper, "Seccomp_filters")[0])
		CHECK(atoi(status(helper, "Seccomp_filters")) >= 2);
	return killed_asynchronously();
}

static void start_then_sandbox(void)
{
	static const struct atd_insn insns[] = {	/* the helper needs none of these */
		STMT(0x20, 0),
		JEQ(__NR_clone, 5, 0), JEQ(__NR_ppoll, 4, 0), JEQ(__NR_wait4, 3, 0),
		JEQ(__NR_kill, 2, 0), JEQ(__NR_exit_group, 1, 0), STMT(6, ALLOW), STMT(6, ERRNO | EPERM)
	};

	start();
	if (!geteuid()) {
		MUST(!chroot("/dev"));
		MUST(!setgroups(0, NULL) && !setresgid(NOBODY, NOBODY, NOBODY) &&
			!setresuid(NOBODY, NOBODY, NOBODY));
	}
	MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	filter(insns, 8);
	/* nobody can tell any more whether there is a helper: no second one */
	MUST(async_teardown_start() == -EPERM && async_teardown_stop() == -EPERM);
}

static const char *sandboxes_itself(void)
{
	TRY(spawn(start_then_sandbox));
	return killed_asynchronously();
}

/* What the filter says, by running it.  The argument that it looks at is arg. */
static unsigned verdict(unsigned arch, unsigned nr, unsigned arg)
{
	const struct atd_insn *p;
	unsigned a = 0;

	for (p = atd_filter; ; p++)
		switch (p->code) {
		case 0x20: a = p->k == 0 ? nr : p->k == 4 ? arch : arg; break;
		case 0x15: p += a == p->k ? p->jt : p->jf; break;
		default: return p->k;
		}
}

static const char *filter_list(void)
{
	static const unsigned any[] = {
		__NR_ppoll, __NR_rt_sigtimedwait, __NR_getppid, __NR_munmap, __NR_close,
		__NR_timer_create, __NR_timer_settime, __NR_exit, __NR_exit_group
	};
	static const unsigned values[] = { 0, 1, 4, 9, 10, 24, 64, 0x100, 0x101, 0x10000000 };
	unsigned nr, i, listed, arch = atd_filter[1].k;

	for (nr = 0; nr < 0x40001000; nr = nr == 0x1fff ? 0x40000000 : nr + 1)
		for (i = 0; i < sizeof(values) / sizeof(*values); i++) {
			const unsigned v = values[i];
			unsigned j;

			for (j = 0; j < sizeof(any) / sizeof(*any) && any[j] != nr; j++)
				;
			listed = j < sizeof(any) / sizeof(*any) || (nr == __NR_kill && v == 0) ||
				(nr == __NR_unshare && v == CLONE_VM) ||
				(nr == __NR_madvise && (v == MADV_DONTNEED || v == 24 /* .._LOCKED */));
			CHECK(verdict(arch, nr, v) == (listed ? (unsigned)ALLOW : 0x80000000U));
			CHECK(verdict(arch ^ 0x40000000, nr, v) == 0x80000000U);
		}
	return NULL;
}

/* As a user who has the VMM's uid but none of its capabilities. */
static const char *peeks(pid_t pid)
{
	static const struct atd_cap_data none[2];
	struct atd_cap_header header = { ATD_CAPABILITY_VERSION_3, 0 };
	char path[64];
	pid_t child;
	int st;

	child = fork();
	if (!child) {
		if (atd_syscall(__NR_capset, atd_arg(&header), atd_arg(none), 0, 0, 0))
			_exit(2);
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		if (open(path, O_RDWR) >= 0)
			_exit(3);
		snprintf(path, sizeof(path), "/proc/%d/root/", pid);
		_exit(open(path, O_RDONLY) >= 0 ? 4 : 0);
	}
	CHECK(child > 0 && reap(child, &st) && st == 0);
	return NULL;
}

static const char *same_uid_peeks(void)
{
	if (geteuid())
		SKIP("needs capabilities");
	TRY(spawn(start));
	TRY(peeks(vmm));	/* as it was without a helper, */
	TRY(peeks(sh->helper));	/* so it is with one */
	return killed_asynchronously();
}

static void stop_in_vfork(void)
{
	pid_t child;
	int st;

	start();
	child = vfork();
	if (!child)
		_exit(async_teardown_stop());
	MUST(child > 0 && waitpid(child, &st, 0) == child && st == 0);
	MUST(async_teardown_start() == sh->helper);
	MUST(async_teardown_stop() == 0);
	MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	start();
}

static void stop_in_vforks_while_starting(void)
{
	pthread_t t[2];
	pid_t child;
	int i, st;

	MUST(!setpgid(0, 0));	/* a helper of PID 0 is one's process group */
	for (i = 0; i < 2; i++)
		MUST(!pthread_create(&t[i], NULL, start_and_stop, NULL));
	for (i = 0; i < effort(2000); i++) {
		child = vfork();
		if (!child)
			_exit(async_teardown_stop());
		MUST(child > 0 && waitpid(child, &st, 0) == child && st == 0);
	}
	sh->go = 1;
	for (i = 0; i < 2; i++)
		MUST(!pthread_join(t[i], NULL));
	MUST(async_teardown_stop() == 0);
	MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
}

static const char *vfork_stops(void)
{
	TRY(spawn(stop_in_vfork));
	TRY(killed_asynchronously());
	TRY(spawn(stop_in_vforks_while_starting));
	return killed_synchronously();
}

static void answer_sigsys(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	sh->counter++;
}

/* Without SA_RESTART. */
static void on_sigsys(void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction act;

	memset(&act, 0, sizeof(act));
	act.sa_sigaction = handler;
	act.sa_flags = SA_SIGINFO;
	sigaction(SIGSYS, &act, NULL);
}

/* As a sandbox does that answers calls by a handler. */
static void trap(unsigned nr)
{
	on_sigsys(answer_sigsys);
	filter_one(nr, TRAP);
}

static void start_where_clone_traps(void)
{
	trap(__NR_clone);
	MUST(async_teardown_start() < 0 && sh->counter == 1);
}

static void start_where_setsid_traps(void)
{
	trap(__NR_setsid);
	fails_with(-EPERM);	/* the VMM's handler does not run in the helper */
	MUST(sh->counter == 0);
}

static const char *seccomp_traps(void)
{
	TRY(spawn(start_where_clone_traps));
	TRY(killed_synchronously());
	if (before_5_16())
		SKIP("where the filter traps the helper, this kernel kills the VMM; the rest was tried");
	TRY(spawn(start_where_setsid_traps));
	return killed_synchronously();
}

/* --- input and output that outlives the VMM ------------------------------ */

#if __has_include(<linux/aio_abi.h>)
#include <linux/aio_abi.h>

enum { PLAIN, AIO, URING };
static int pipes[3][2];

static int is_read(int i)
{
	struct pollfd p = { pipes[i][1], POLLOUT, 0 };

	return poll(&p, 1, 0) >= 0 && !(p.revents & POLLERR);
}

/* Of each pipe the VMM has the only reading end; in sh->second, which it could
 * give to a native AIO request that stays in flight, and to an io_uring. */
static void start_with_requests(void)
{
	static struct iocb cb, *cbs[] = { &cb };
	static unsigned params[30];	/* a struct io_uring_params */
	aio_context_t context = 0;
	int i, ring;

	for (i = 0; i < 3; i++)
		close(pipes[i][1]);
	cb.aio_fildes = (unsigned)pipes[AIO][0];
	cb.aio_lio_opcode = IOCB_CMD_POLL;
	cb.aio_buf = POLLIN;
	if (!syscall(SYS_io_setup, 1, &context) && syscall(SYS_io_submit, context, 1, cbs) == 1)
		sh->second |= 1 << AIO;
	ring = (int)syscall(SYS_io_uring_setup, 1, params);
	if (ring >= 0 && mmap(NULL, 4096, PROT_READ, MAP_SHARED, ring, 0) != MAP_FAILED &&
	    !syscall(SYS_io_uring_register, ring, 2 /* files */, &pipes[URING][0], 1))
		sh->second |= 1 << URING;
	start();
}

static const char *requests(void)
{
	pid_t helper;
	int i;

	for (i = 0; i < 3; i++)
		CHECK(!pipe(pipes[i]));
	TRY(spawn(start_with_requests));
	helper = sh->helper;
	for (i = 0; i < 3; i++)
		close(pipes[i][0]);
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(!is_read(PLAIN));
	for (i = AIO; i <= URING; i++)
		CHECK(is_read(i) == !!(sh->second & 1 << i));
	CHECK(!signal_one(helper, SIGCONT) && gone(helper));
	CHECK(UNTIL(deadline, !is_read(AIO) && !is_read(URING)));
	if (sh->second != (1 << AIO | 1 << URING))
		SKIP("no native AIO, or no io_uring");
	return NULL;
}
#else
static const char *requests(void)
{
	SKIP("needs linux/aio_abi.h");
}
#endif

/* --- a real guest --------------------------------------------------------- */

#if defined(__x86_64__) && __has_include(<linux/kvm.h>)
#include <glob.h>
#include <linux/kvm.h>

enum { GUEST_MIB = 16 };
static int kvm_fd, vm_fd;

/* 16-bit code in "unreal mode", ds being flat and 4 GiB: touches all memory, and
 * again, for ever. */
static const unsigned char guest_code[] = {
	0x66, 0xbf, 0x00, 0x00, 0x10, 0x00,			/* again: mov edi, 0x100000 */
	0x66, 0x67, 0xff, 0x07,					/* next: inc dword [edi] */
	0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,		/* add edi, 4096 */
	0x66, 0x81, 0xff, 0x00, 0x00, 0x00, GUEST_MIB >> 4,	/* cmp edi, end of memory */
	0x72, 0xec,						/* jb next */
	0xe6, 0x10,						/* out 0x10, al: a round is done */
	0xeb, 0xe2,						/* jmp again */
};

static void *vcpu(void *id)
{
	int fd = ioctl(vm_fd, KVM_CREATE_VCPU, (uintptr_t)id);
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	MUST(fd >= 0 && size > 0);
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(run != MAP_FAILED && !ioctl(fd, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = sregs.ds.base = sregs.ds.selector = 0;
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	MUST(!ioctl(fd, KVM_SET_SREGS, &sregs) && !ioctl(fd, KVM_SET_REGS, &regs));
	for (;;) {
		MUST(!ioctl(fd, KVM_RUN, 0) || errno == EINTR);
		MUST(run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_INTR);
		__atomic_add_fetch(&sh->counter, run->exit_reason == KVM_EXIT_IO, __ATOMIC_SEQ_CST);
	}
}

static void run_guest(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_MIB << 20 };
	pthread_t t;
	char *mem;

	MUST((vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0)) >= 0);
	mem = mmap(NULL, GUEST_MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(mem != MAP_FAILED);
	memcpy(mem + 0x1000, guest_code, sizeof(guest_code));
	region.userspace_addr = (uintptr_t)mem;
	ioctl(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	MUST(!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region));
	if (threads_wanted)
		MUST(async_teardown_ram(mem, GUEST_MIB << 20) == 0);
	start();
	MUST(!pthread_create(&t, NULL, vcpu, NULL) && !pthread_create(&t, NULL, vcpu, (void *)1));
	MUST(UNTIL(deadline, sh->counter >= 4));
}

/* KVM has a directory PID-FD for each guest, where debugfs is mounted. */
static int guest_exists(void)
{
	char pattern[64];
	glob_t g;
	int found;

	snprintf(pattern, sizeof(pattern), "/sys/kernel/debug/kvm/%d-*", vmm);
	found = glob(pattern, 0, NULL, &g) == 0;
	globfree(&g);
	return found;
}

static int by_kill_but_the_guest(void)
{
	return by_kill() && UNTIL(deadline, state(vmm) == 'Z') &&
		(access("/sys/kernel/debug/kvm", X_OK) || guest_exists());
}

static const char *kvm(void)
{
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		SKIP("no /dev/kvm");
	for (threads_wanted = 0; threads_wanted < 2; threads_wanted++) {	/* RAM told or not */
		TRY(spawn(run_guest));
		TRY(ended_by(by_kill_but_the_guest, SIGKILL));
		CHECK(!guest_exists());
	}
	return NULL;
}

static int gate[2];

/* A guest whose memory only a descriptor holds; sh->second where KVM has none. */
static void hold_guest_memfd(void)
{
	struct { __u64 size, flags, reserved[6]; } memory = { GUEST_MIB << 20, 0, { 0 } };
	int fds[2], cpu, size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	fds[1] = gate[1];
	if ((vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 1 /* KVM_X86_SW_PROTECTED_VM */)) < 0 ||
	    (fds[0] = ioctl(vm_fd, _IOWR(KVMIO, 0xd4, memory) /* KVM_CREATE_GUEST_MEMFD */, &memory)) < 0 ||
	    fallocate(fds[0], 0, 0, GUEST_MIB << 20)) {
		sh->second = 1;
		start();
		return;
	}
	/* what keeps the guest while it is mapped */
	MUST((cpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0)) >= 0);
	MUST(mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, cpu, 0) != MAP_FAILED);
	MUST(async_teardown_keep(fds, 2) == 0);
	start();
}

static const char *guest_memfd(void)
{
	pid_t helper;

	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		SKIP("no /dev/kvm; in \"keeps\" a file stands for it");
	CHECK(!pipe(gate));
	TRY(spawn(hold_guest_memfd));
	close(gate[1]);
	helper = sh->helper;
	if (sh->second) {
		CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
		SKIP("KVM has no guest_memfd here; in \"keeps\" a file stands for it");
	}
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(access("/sys/kernel/debug/kvm", X_OK) || guest_exists());
	CHECK(poll(&(struct pollfd){ gate[0], POLLIN, 0 }, 1, 0) == 0);
	CHECK(!signal_one(helper, SIGCONT));
	CHECK(poll(&(struct pollfd){ gate[0], POLLIN, 0 }, 1, (int)(1000 * deadline)) == 1);
	CHECK(!guest_exists());
	CHECK(gone(helper));
	return NULL;
}
#else
static const char *kvm(void)
{
	SKIP("has a guest only for x86-64 with linux/kvm.h");
}

static const char *guest_memfd(void)
{
	SKIP("has a guest only for x86-64 with linux/kvm.h");
}
#endif

/* On one CPU the helper runs only when its caller sleeps. */
static void start_in_real_time(void)
{
	struct sched_param param = { .sched_priority = 1 };
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	MUST(!sched_setaffinity(0, sizeof(one), &one));
	if (sched_setscheduler(0, SCHED_FIFO, &param)) {
		sh->second = 1;
		return;
	}
	start();
	MUST(async_teardown_stop() == 0);
	filter_one(__NR_ppoll, ERRNO | EPERM);
	fails_with(-EPERM);
}

static const char *real_time(void)
{
	TRY(spawn(start_in_real_time));
	TRY(killed_synchronously());
	if (sh->second)
		SKIP("no real-time scheduling here");
	return NULL;
}

/* --- what start may wait for, and for how long -------------------------------- */

static void start_stop_in_group(void)
{
	int i;

	MUST(!setpgid(0, 0));
	ready();
	for (i = 0; !sh->go; i++) {
		MUST(async_teardown_start() > 0);
		MUST(async_teardown_stop() == 0);
		sh->alive = i;
	}
	start();
	sh->passed = 1;
}

static const char *group_stops(void)
{
	int i, before;

	TRY(spawn(start_stop_in_group));
	for (i = 0; i < effort(1000); i++) {
		CHECK(vmm > 1 && !kill(-vmm, SIGSTOP));
		/* D: it waits for the thread that makes the helper, which has stopped */
		CHECK(UNTIL(deadline, strchr("TD", state(vmm))));
		CHECK(!kill(-vmm, SIGCONT));
	}
	before = sh->alive;
	CHECK(UNTIL(deadline, sh->alive > before + 1));
	sh->go = 1;
	CHECK(UNTIL(deadline, sh->passed));
	return killed_asynchronously();
}

static void start_when_told(void)
{
	ready();
	await_go();
	sh->second = async_teardown_start();
	sh->passed = 1;
	while (sh->go != 2)
		nap();
	sh->helper = async_teardown_start();
	sh->passed = 2;
}

/* Has the VMM call start, and traces it so that its helper never runs. */
static const char *hold_helper(pid_t *helper)
{
	const long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
	pid_t pid;
	int st;

	*helper = 0;
	TRY(spawn(start_when_told));
	if (ptrace(PTRACE_SEIZE, vmm, 0, options))
		SKIP("may not trace");
	sh->go = 1;
	while (!*helper) {
		CHECK(UNTIL(deadline, (pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0));
		CHECK(WIFSTOPPED(st));
		if (atoi(status(pid, "Tgid")) != vmm)
			*helper = pid;
		else
			CHECK(!ptrace(PTRACE_CONT, pid, 0, 0));
	}
	return NULL;
}

/* The VMM runs on; its threads' stops and ends are the tracer's. */
static int vmm_passes(pid_t helper, int what)
{
	int st, sig;
	pid_t pid;

	return UNTIL(deadline, ({
		while ((pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0)
			if (WIFSTOPPED(st) && pid != helper) {
				sig = st >> 16 ? 0 : WSTOPSIG(st);
				ptrace(PTRACE_CONT, pid, 0, (long)sig);
			}
		sh->passed == what;
	}));
}

static const char *helper_held(void)
{
	pid_t held;

	TRY(hold_helper(&held));
	CHECK(vmm_passes(held, 1) && sh->second == -ETIMEDOUT);
	/* it is killed, but traced; when it can die, the next start reaps it */
	ptrace(PTRACE_DETACH, held, 0, 0);
	sh->go = 2;
	CHECK(vmm_passes(0, 2) && sh->helper > 0 && sh->helper != held);
	CHECK(signal_one(held, 0) && errno == ESRCH);
	return NULL;
}

static const char *killed_in_set_up(void)
{
	pid_t held;

	TRY(hold_helper(&held));
	CHECK(!signal_one(held, SIGKILL));
	CHECK(vmm_passes(held, 1) && sh->second == -ECANCELED);
	sh->go = 2;
	CHECK(vmm_passes(0, 2) && sh->helper > 0);
	return NULL;
}

/* SIGTERM waits as long as start and stop do; SIGKILL does not. */
static const char *killed_while_waiting(pid_t helper)
{
	int st;

	CHECK(!signal_one(vmm, SIGTERM));
	CHECK(strtoull(status(vmm, "ShdPnd"), NULL, 16) & 1ULL << (SIGTERM - 1));
	CHECK(strtoull(status(vmm, "SigBlk"), NULL, 16) & 1ULL << (SIGTERM - 1));
	CHECK(state(vmm) && state(vmm) != 'Z' && !sh->passed);
	CHECK(by_kill());
	/* also, in start, its thread that waits for the helper */
	CHECK(UNTIL(deadline, waitpid(-1, &st, WNOHANG | __WALL) == vmm && WTERMSIG(st) == SIGKILL));
	CHECK(!ptrace(PTRACE_DETACH, helper, 0, 0));
	CHECK(reap(helper, NULL) && mm_freed());
	return NULL;
}

static void start_and_stop_when_told(void)
{
	start();
	ready();
	await_go();
	async_teardown_stop();
	sh->passed = 1;
}

static const char *signals_wait(void)
{
	pid_t helper;
	int st;

	TRY(hold_helper(&helper));
	CHECK(UNTIL(deadline, state(vmm) == 'D'));	/* for the thread that clones */
	TRY(killed_while_waiting(helper));
	TRY(spawn(start_and_stop_when_told));
	helper = sh->helper;
	CHECK(!ptrace(PTRACE_SEIZE, helper, 0, PTRACE_O_TRACEEXIT));
	sh->go = 1;
	CHECK(UNTIL(deadline, waitpid(helper, &st, WNOHANG | __WALL) == helper) && WIFSTOPPED(st));
	return killed_while_waiting(helper);
}

#if defined(__x86_64__)
#include <sys/io.h>
#include <sys/user.h>

/* Reads a port, whatever may be there. */
__asm__(".text\n.globl read_port\nread_port: inb $0x80, %al\n1: jmp 1b\n");
extern const char read_port[];

static void take_ports_then_drop(void)
{
	sh->second = ioperm(0x80, 1, 1);
	start();
	if (!sh->second)
		MUST(!ioperm(0x80, 1, 0));
}

/* Has the helper run that: does it get through? */
static const char *ports_stay(void)
{
	struct user_regs_struct regs;
	pid_t helper;
	int st;

	TRY(spawn(take_ports_then_drop));
	helper = sh->helper;
	if (sh->second) {
		TRY(killed_asynchronously());
		SKIP("ioperm is not permitted, or not in this kernel");
	}
	CHECK(!ptrace(PTRACE_SEIZE, helper, 0, 0) && !ptrace(PTRACE_INTERRUPT, helper, 0, 0));
	CHECK(reap(helper, &st) && WIFSTOPPED(st));
	CHECK(!ptrace(PTRACE_GETREGS, helper, 0, &regs));
	regs.rip = (uintptr_t)read_port;
	regs.orig_rax = ~0ULL;		/* no system call to restart */
	CHECK(!ptrace(PTRACE_SETREGS, helper, 0, &regs) && !ptrace(PTRACE_SINGLESTEP, helper, 0, 0));
	CHECK(reap(helper, &st) && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTRAP);
	CHECK(by_kill() && reap(vmm, NULL) && !signal_one(helper, SIGKILL) && reap(helper, NULL));
	return NULL;
}
#else
static const char *ports_stay(void) { SKIP("x86-64 only"); }
#endif

#if __has_include(<linux/fuse.h>)
#include <linux/fuse.h>

static int fuse = -1;
static const char slow_file[] = "/dev/fuse";	/* mounted there, where only the test sees it */

static void fuse_reply(uint64_t unique, const void *data, size_t size)
{
	struct { struct fuse_out_header h; char data[256]; } out;

	memset(&out, 0, sizeof(out));
	out.h.unique = unique;
	out.h.len = (uint32_t)(sizeof(out.h) + size);
	if (size)
		memcpy(out.data, data, size);
	if (write(fuse, &out, out.h.len) < 0)
		return;
}

/* A file system that is one file; to a flush it answers when told. */
static void *serve(void *arg)
{
	static char buf[1 << 17];
	struct fuse_in_header *in = (void *)buf;
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = 4096 };
	struct fuse_attr_out attr = { .attr = { .ino = 1, .mode = S_IFREG | 0666, .nlink = 1 } };
	struct fuse_open_out opened = { .fh = 1 };

	(void)arg;
	while (read(fuse, buf, sizeof(buf)) > 0)
		switch (in->opcode) {
		case FUSE_INIT: fuse_reply(in->unique, &init, sizeof(init)); break;
		case FUSE_GETATTR: fuse_reply(in->unique, &attr, sizeof(attr)); break;
		case FUSE_OPEN: fuse_reply(in->unique, &opened, sizeof(opened)); break;
		case FUSE_FLUSH:
			sh->entered++;
			while (!sh->go)
				nap();
			fuse_reply(in->unique, NULL, 0);
			break;
		case FUSE_FORGET: break;
		default: fuse_reply(in->unique, NULL, 0);
		}
	return NULL;
}

/* /dev/fuse is left to the judge alone: with it ends all waiting for an answer. */
static void open_slow_file(void)
{
	MUST(!close(fuse) && open(slow_file, O_RDONLY) >= 0);
}

static void start_with_slow_file(void)
{
	open_slow_file();
	sh->second = async_teardown_start();
	ready();
	await_go();
	/* The old one ends as soon as the server has answered. */
	MUST(UNTIL(deadline, (sh->helper = async_teardown_start()) != -ETIMEDOUT));
	sh->passed = 1;
}

static void *start_slowly(void *arg)
{
	(void)arg;
	while (!sh->attempt)
		nap();
	async_teardown_start();
	return NULL;
}

static void start_with_slow_file_when_told(void)
{
	pthread_t t;

	open_slow_file();
	MUST(!pthread_create(&t, NULL, start_slowly, NULL));
}

static pid_t child_of(pid_t pid)
{
	struct dirent *e;
	pid_t child = 0;
	DIR *d = opendir("/proc");

	while (d && !child && (e = readdir(d)))
		if (atoi(e->d_name) && atoi(status(atoi(e->d_name), "PPid")) == pid)
			child = atoi(e->d_name);
	if (d)
		closedir(d);
	return child;
}

static const char *slow_flush(void)
{
	char options[128];
	pthread_t t;
	pid_t helper;

	if (geteuid())
		SKIP("needs root, to mount");
	if ((fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC)) < 0)
		SKIP("no /dev/fuse");
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	snprintf(options, sizeof(options), "fd=%d,rootmode=100666,user_id=0,group_id=0", fuse);
	if (mount("atd", slow_file, "fuse", 0, options))
		SKIP("cannot mount a FUSE");
	CHECK(!pthread_create(&t, NULL, serve, NULL));
	TRY(spawn(start_with_slow_file));
	CHECK(sh->entered && sh->second == -ETIMEDOUT);
	sh->go = 1;
	CHECK(UNTIL(deadline, sh->passed) && sh->helper > 0);
	helper = sh->helper;
	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));

	/* The VMM is killed in start, and a SIGSTOP keeps the helper from noticing. */
	TRY(spawn(start_with_slow_file_when_told));
	sh->go = 0;
	sh->entered = 0;
	sh->attempt = 1;
	CHECK(UNTIL(deadline, sh->entered) && (helper = child_of(vmm)));
	CHECK(!signal_one(helper, SIGSTOP) && by_kill());
	sh->go = 1;
	CHECK(reap(vmm, NULL) && reap(helper, NULL) && mm_freed());
	return NULL;
}
#else
static const char *slow_flush(void)
{
	SKIP("needs linux/fuse.h");
}
#endif

static void start_with_slack(void)
{
	const unsigned long slack = sizeof(long) == 8 ? 2000000000UL * 1800 : 2000000000UL;
	int i;

	MUST(!prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0));
	for (i = effort(100); i-- > 0; ) {
		start();
		MUST(syscall(SYS_prctl, PR_GET_TIMERSLACK) == (long)slack);
		if (i)	/* not by stop, which may sleep, for as long as the slack says */
			MUST(!signal_one(sh->helper, SIGKILL) && waitpid(sh->helper, NULL, __WALL) == sh->helper);
	}
}

static const char *timer_slack(void)
{
	pid_t helper;

	TRY(spawn(start_with_slack));
	helper = sh->helper;
	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
	return NULL;
}

static void start_under_stale_lock(void)
{
	atd_shared.lock = getpid();	/* as a fork would copy it, to the same PID */
	fails_with(-ETIMEDOUT);
}

static const char *stale_lock(void)
{
	TRY(spawn(start_under_stale_lock));
	return killed_synchronously();
}

static void *interrupt_often(void *arg)
{
	const pid_t *tid = arg;

	while (!sh->go)
		syscall(SYS_tgkill, getpid(), *tid, SIGSYS);
	return NULL;
}

static void start_stop_interrupted(void)
{
	pid_t tid = (pid_t)syscall(SYS_gettid);
	pthread_t t;
	int i;

	on_sigsys(answer_sigsys);
	MUST(!pthread_create(&t, NULL, interrupt_often, &tid));
	MUST(UNTIL(deadline, sh->counter));
	for (i = 0; i < effort(300); i++) {
		/* On a busy machine a helper may wait for a CPU to die on longer than
		 * stop does. */
		MUST(async_teardown_start() > 0 && UNTIL(deadline, async_teardown_stop() == 0));
		MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	}
	sh->go = 1;
	MUST(!pthread_join(t, NULL));
	start();
}

static const char *interrupted(void)
{
	TRY(spawn(start_stop_interrupted));
	return killed_asynchronously();
}

static void start_and_unshare(void)
{
	pid_t child;
	int i, st;

	for (i = 0; i < effort(200); i++) {
		child = fork();
		if (!child) {
			if (async_teardown_start() <= 0)
				_exit(1);
			st = unshare(CLONE_NEWUSER) ? errno : 0;
			async_teardown_stop();
			_exit(st == 0 ? 0 : st == EINVAL ? 2 : 3);
		}
		MUST(child > 0 && waitpid(child, &st, 0) == child && WIFEXITED(st));
		MUST(WEXITSTATUS(st) == 0 || WEXITSTATUS(st) == 3);
		sh->second = WEXITSTATUS(st);
	}
}

static const char *no_thread_left(void)
{
	TRY(spawn(start_and_unshare));
	TRY(killed_synchronously());
	if (sh->second)
		SKIP("no user namespaces here");
	return NULL;
}

static int clone_other(void *arg) { (void)arg; for (;;) pause(); return 0; }

static void stop_after_reuse(void)
{
	static char stack[65536];
	pid_t other;

	start();
	/* The VMM's own loop reaps a helper that was killed, and its PID comes to be
	 * that of another child without an exit signal. */
	MUST(!signal_one(sh->helper, SIGKILL) && waitpid(sh->helper, NULL, __WALL) == sh->helper);
	other = clone(clone_other, stack + sizeof(stack), 0, NULL);
	MUST(other > 0);
	atd_shared.pid = other;
	MUST(async_teardown_stop() == 0);
	MUST(!signal_one(other, 0) && state(other) != 'Z');
	start();
	MUST(!signal_one(other, SIGKILL) && waitpid(other, NULL, __WALL) == other);
}

static const char *pid_reused(void)
{
	TRY(spawn(stop_after_reuse));
	return killed_asynchronously();
}

static void stop_as_impostor(void)
{
	pid_t child;
	int st;

	start();
	child = vfork();
	if (!child) {
		atd_shared.vmm = getpid();	/* as if namespaces gave us one number */
		_exit(async_teardown_stop());
	}
	MUST(child > 0 && waitpid(child, &st, 0) == child && st == 0);
	atd_shared.vmm = getpid();
	MUST(async_teardown_start() == sh->helper);
}

static const char *impostor_stops(void)
{
	TRY(spawn(stop_as_impostor));
	return killed_asynchronously();
}

static void start_under_wrong_filter(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct atd_insn *insn = (struct atd_insn *)(uintptr_t)&atd_filter[1];
	char *at = (char *)((uintptr_t)insn & ~(page - 1));
	int i;

	MUST(!mprotect(at, 2 * page, PROT_READ | PROT_WRITE));
	insn->k ^= 1;	/* another architecture than the kernel's idea of this one */
	for (i = 0; i < effort(50); i++)
		fails_with(-EPERM);
}

static const char *filter_is_tried(void)
{
	if (before_5_16())
		SKIP("this kernel kills the VMM then");
	TRY(spawn(start_under_wrong_filter));
	return killed_synchronously();
}

/* Answers rt_sigprocmask as sandboxes do that may never lose SIGSYS. */
static void answer_sigmask(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	char deep[4096];	/* some handlers are */

	(void)sig;
	(void)info;
	memset(deep, sh->counter, sizeof(deep));
	sh->counter += deep[17] == (char)sh->counter;
	sh->alive += getpid() != sh->target;
#ifdef __x86_64__
	uc->uc_mcontext.gregs[REG_RAX] = 0;
#elif defined(__aarch64__)
	uc->uc_mcontext.regs[0] = 0;
#endif
	if (sh->attempt) {
		sigfillset(&uc->uc_sigmask);
		sigdelset(&uc->uc_sigmask, SIGSYS);
	}
}

static void start_where_sigmask_traps(void)
{
	sh->target = getpid();
	sh->attempt = threads_wanted;
	on_sigsys(answer_sigmask);
	filter_one(__NR_rt_sigprocmask, TRAP);
	sh->result = async_teardown_start();
	/* what it has in the result's register is its matter */
	MUST(sh->result < 0 && sh->counter > 0 && sh->alive == 0);
	ready();
	for (;;)
		atd_sleep_us(1000);
}

/* The helper's first steps: whatever traps, no handler runs in it. */
static void start_where_first_prctl_traps(void)
{
	const struct atd_insn insns[] = {
		STMT(0x20, 0), JEQ(__NR_prctl, 0, 3),
		STMT(0x20, 16 + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0)), JEQ(PR_SET_PDEATHSIG, 0, 1),
		STMT(6, TRAP), STMT(6, ALLOW)
	};

	sh->target = getpid();
	on_sigsys(answer_sigmask);
	filter(insns, 6);
	fails_with(-EPERM);
	MUST(sh->counter == 0 && sh->alive == 0);
}

static const char *sigmask_traps(void)
{
	if (!before_5_16()) {
		TRY(spawn(start_where_first_prctl_traps));
		TRY(killed_synchronously());
	}
	for (threads_wanted = 0; threads_wanted < 2; threads_wanted++) {
		TRY(spawn(start_where_sigmask_traps));
		TRY(killed_synchronously());
	}
	return NULL;
}

/* --- release first -------------------------------------------------------------- */

static char *ram;
static size_t ram_size;

static void make_ram(size_t size)
{
	ram_size = size;
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(ram != MAP_FAILED);
	madvise(ram, size, MADV_NOHUGEPAGE);
}

static int threads_of(pid_t pid) { return atoi(status(pid, "Threads")); }

#if __has_include(<linux/userfaultfd.h>) && __has_include(<linux/if_tun.h>)
#include <linux/userfaultfd.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include "ring.h"

/* Sends a descriptor that stays open in no process. */
static void send_fd(int to, int fd)
{
	char control[CMSG_SPACE(sizeof(int))], byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	memset(control, 0, sizeof(control));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	MUST(sendmsg(to, &m, 0) == 1);
}

static int receive_fd(int from)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(from, &m, MSG_DONTWAIT) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

/* Has whoever frees of the RAM wait until the judge reads of it; 0 if there is no
 * userfaultfd. */
static int hold_ram(int to)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register reg = { .range = { (uintptr_t)ram, ram_size },
		.mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* USER_MODE_ONLY */);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		return 0;
	send_fd(to, fd);
	close(fd);
	return 1;
}

static int open_tap(void)
{
	struct ifreq req;
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	memset(&req, 0, sizeof(req));
	snprintf(req.ifr_name, sizeof(req.ifr_name), "atd%d", sh->target);
	req.ifr_flags = IFF_TAP | IFF_NO_PI;
	if (fd >= 0 && ioctl(fd, TUNSETIFF, &req)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* A ring that a packet socket shares with the kernel keeps the socket. */
static int packet_ring(void)
{
	struct { unsigned block_size, blocks, frame_size, frames; } ring = { 65536, 1, 2048, 32 };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct stat st;

	if (fd < 0 || setsockopt(fd, 263 /* SOL_PACKET */, 5 /* PACKET_RX_RING */, &ring, sizeof(ring)) ||
	    mmap(NULL, 65536, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED || fstat(fd, &st))
		return 0;
	sh->attempt = (int)st.st_ino;
	return 1;
}

static int packet_exists(void)
{
	char *line = strtok(slurp("/proc/net/packet", 0), "\n"), *last;
	long inode;

	for (; line; line = strtok(NULL, "\n"))		/* in the last column */
		for (inode = 0; *line; line = last) {
			inode = strtol(line, &last, 10);
			if (last == line)
				last++;
			if (inode == sh->attempt && !last[strspn(last, " ")])
				return 1;
		}
	return 0;
}

enum { HELD = 1, POLLED = 2, TAP = 4, PACKET = 8 };
static int chan[2], peer[2], chunks, refuse_unshare;

static void start_with_devices(void)
{
	int tap;

	close(chan[0]);
	close(peer[0]);
	make_ram((size_t)chunks << 26);
	if (chunks == 1)
		memset(ram, 1, ram_size);
	sh->second = hold_ram(chan[1]) * HELD | (ring_poll(peer[1]) == 0) * POLLED;
	sh->target = getpid();
	if (!geteuid() && (tap = open_tap()) >= 0 && ring_poll(tap) == 0)
		sh->second |= TAP;
	if (packet_ring())
		sh->second |= PACKET;
	MUST(async_teardown_ram(ram, ram_size) == 0);
	if (refuse_unshare)
		filter_one(__NR_unshare, ERRNO | EPERM);
	start();
}

static int has_ended(int sock)
{
	char c;

	return recv(sock, &c, 1, MSG_DONTWAIT) == 0;
}

static int reads_on(int uffd, pid_t helper)
{
	struct uffd_msg msg;
	int st = 1;

	return UNTIL(deadline, ({
		while (read(uffd, &msg, sizeof(msg)) > 0)
			;
		waitpid(helper, &st, WNOHANG | __WALL) == helper;
	})) && st == 0;
}

static const char *spawn_with_devices(int *uffd)
{
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, chan));
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peer));
	TRY(spawn(start_with_devices));
	close(chan[1]);
	close(peer[1]);
	*uffd = sh->second & HELD ? receive_fd(chan[0]) : -1;
	return NULL;
}

static const char *release_first(void)
{
	pid_t helper;
	int uffd, tap = -1;

	chunks = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP("no userfaultfd, which holds the freeing up");
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	/* reaped, and all is as it was */
	CHECK(mm_held() && rss_kib(helper) >= 64 * 1024L);
	if (sh->second & POLLED)
		CHECK(!has_ended(peer[0]));
	if (sh->second & TAP)
		CHECK(open_tap() < 0 && errno == EBUSY);
	if (sh->second & PACKET)
		CHECK(packet_exists());
	CHECK(!signal_one(helper, SIGCONT));
	/* released, and the RAM is still there */
	CHECK(mm_freed());
	CHECK(UNTIL(deadline, has_ended(peer[0])));
	if (sh->second & TAP)
		CHECK(UNTIL(deadline, (tap = open_tap()) >= 0));
	if (sh->second & PACKET)
		CHECK(UNTIL(deadline, !packet_exists()));
	CHECK(rss_kib(helper) >= 64 * 1024L);
	CHECK(rss_kib(helper) < 64 * 1024L + mib * 1024L / 2);	/* the rest is not */
	CHECK(state(helper) != 'Z' && state(helper));
	/* back */
	CHECK(reads_on(uffd, helper));
	close(tap);
	if (!(sh->second & POLLED))
		SKIP("no io_uring; the lock of a mapped file was tried");
	if (!(sh->second & TAP))
		SKIP("no TAP; socket and lock were tried");
	return NULL;
}

/* Do all threads wait in madvise? */
static int all_in_madvise(pid_t helper)
{
	char path[64];
	struct dirent *e;
	DIR *d;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", helper);
	if (!(d = opendir(path)))
		return 0;
	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", helper, atoi(e->d_name));
		n += *e->d_name != '.' && atoi(slurp(path, 0)) == __NR_madvise;
	}
	closedir(d);
	return n == threads_of(helper);
}

static const char *threads(void)
{
	static const char *const zero[] = { "CapInh", "CapEff", "CapAmb" };
	char path[64], text[64];
	const char *now_;
	struct dirent *e;
	pid_t helper;
	size_t i;
	DIR *d;
	int uffd;

	chunks = 2 * ASYNC_TEARDOWN_THREADS;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	CHECK(threads_of(helper) == (has_pidfd(helper) ? ASYNC_TEARDOWN_THREADS : 1));
	snprintf(path, sizeof(path), "/proc/%d/task", helper);
	CHECK((d = opendir(path)));
	while ((e = readdir(d))) {
		pid_t tid = atoi(e->d_name);

		if (!tid)
			continue;
		for (i = 0; i < 3; i++)
			CHECK(strtoull(status(tid, zero[i]), NULL, 16) == 0);
		CHECK(atoi(status(tid, "Seccomp")) == 2);
		now_ = status(tid, "NoNewPrivs");
		CHECK(!*now_ || atoi(now_) == 1);
		snprintf(text, sizeof(text), "cleanup/%d", vmm);
		CHECK(!strcmp(status(tid, "Name"), text));
	}
	closedir(d);
	if (uffd < 0)
		SKIP("no userfaultfd, which holds the freeing up");
	CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
	CHECK(UNTIL(deadline, all_in_madvise(helper)));
	CHECK(reads_on(uffd, helper));
	return NULL;
}

/* As containers do: whether others use the memory is not known then. */
static const char *unshare_refused(void)
{
	pid_t helper;
	int uffd;

	if (syscall(ATD_NR_CLOSE_RANGE, 1 << 20, 1 << 20, 0))
		SKIP("needs close_range, or start needs unshare itself");
	chunks = refuse_unshare = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP("no userfaultfd");
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(mm_freed() && rss_kib(helper) >= 64 * 1024L);	/* released all the same */
	CHECK(reads_on(uffd, helper));
	return NULL;
}

/* These rings' requests end with the process's last thread, mapped or not. */
static unsigned ring_flags;

static void start_with_ring(void)
{
	close(peer[0]);
	sh->second = ring_poll_with(ring_flags, peer[1]);
	start();
}

static const char *rings_that_go(void)
{
	const unsigned flags[] = { RING_SQPOLL, RING_NO_MMAP, 0 };
	int i, none = 0;

	for (i = 0; i < 3; i++) {
		ring_flags = flags[i];
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peer));
		TRY(spawn(start_with_ring));
		close(peer[1]);
		CHECK(freeze(sh->helper));
		CHECK(by_kill() && reap(vmm, NULL));
		if (sh->second)
			none++;
		else if (ring_flags)
			CHECK(UNTIL(deadline, has_ended(peer[0])) && state(sh->helper) == 'T');
		else {		/* and the usual ones stay */
			usleep(100000);
			CHECK(!has_ended(peer[0]));
		}
		CHECK(!signal_one(sh->helper, SIGCONT));
		CHECK(gone(sh->helper) && UNTIL(deadline, has_ended(peer[0])));
		close(peer[0]);
	}
	if (none)
		SKIP("this kernel lacks some of these rings, or all");
	return NULL;
}

/*
 * What is the helper's as a process, to its end: its executable, of which the VMM
 * has one of its own here, and its namespaces.
 */
static char copy[] = "/tmp/async-teardown-XXXXXX";

static int lasting(const char *with_ram)
{
	int pid;

	make_ram(1 << 26);
	memset(ram, 1, ram_size);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!geteuid())
		MUST(!unshare(CLONE_NEWNET));
	if (!hold_ram(3))
		send_fd(3, 3);
	if (*with_ram == '1')
		MUST(async_teardown_ram(ram, ram_size) == 0);
	pid = async_teardown_start();
	MUST(write(3, &pid, sizeof(pid)) == sizeof(pid));
	for (;;)
		pause();
}

static const char *copy_executable(void)
{
	char block[65536];
	ssize_t n;
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = mkostemp(copy, O_CLOEXEC);

	CHECK(to >= 0);
	while ((n = read(from, block, sizeof(block))) > 0)
		CHECK(write(to, block, (size_t)n) == n);
	CHECK(n == 0 && !fchmod(to, 0700));
	close(from);
	close(to);
	return NULL;
}

static int is_busy(void)
{
	int fd = open(copy, O_WRONLY | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd < 0 && errno == ETXTBSY;
}

/* A pair of network devices, one of which is in the VMM's namespace. */
static int make_veth(const char *name)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg info;
		char attributes[256];
	} m;
	struct { struct nlmsghdr h; struct nlmsgerr error; char rest[512]; } answer;
	struct rtattr *link, *data, *peer_info;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	memset(&m, 0, sizeof(m));
	m.h.nlmsg_len = NLMSG_LENGTH(sizeof(m.info));
	m.h.nlmsg_type = RTM_NEWLINK;
	m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
#define END ((struct rtattr *)(void *)((char *)&m + m.h.nlmsg_len))
#define ADD(type, from, n) (END->rta_type = (type), END->rta_len = (unsigned short)RTA_LENGTH(n), \
	memcpy(RTA_DATA(END), from, n), m.h.nlmsg_len += RTA_SPACE((unsigned)(n)))
#define CLOSE(a) ((a)->rta_len = (unsigned short)((char *)END - (char *)(a)))
	ADD(IFLA_IFNAME, name, strlen(name) + 1);
	link = END, ADD(IFLA_LINKINFO, "", 0);
	ADD(IFLA_INFO_KIND, "veth", 4);
	data = END, ADD(IFLA_INFO_DATA, "", 0);
	peer_info = END, ADD(1 /* VETH_INFO_PEER */, &m.info, sizeof(m.info));
	ADD(IFLA_NET_NS_PID, &vmm, sizeof(vmm));
	CLOSE(peer_info);
	CLOSE(data);
	CLOSE(link);
#undef END
#undef ADD
#undef CLOSE
	if (fd < 0 || send(fd, &m, m.h.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
		return 0;
	close(fd);
	return answer.h.nlmsg_type == NLMSG_ERROR && answer.error.error == 0;
}

static int faults_in(int uffd)
{
	struct uffdio_zeropage z = { .range = { (uintptr_t)ram, (uint64_t)sysconf(_SC_PAGESIZE) } };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &z) == 0 || errno != ESRCH;
}

static const char *lasts(const char *with_ram)
{
	char name[16];
	pid_t helper = 0;
	int uffd = -1, veth;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, chan));
	vmm = fork();
	if (!vmm) {
		dup2(chan[1], 3);
		execl(copy, copy, "--lasting", with_ram, NULL);
		_exit(127);
	}
	close(chan[1]);
	CHECK(UNTIL(deadline, (uffd = receive_fd(chan[0])) >= 0));
	CHECK(read(chan[0], &helper, sizeof(helper)) == sizeof(helper) && helper > 0);
	snprintf(name, sizeof(name), "atd%d", vmm);
	veth = !geteuid() && make_veth(name);
	CHECK(is_busy());
	if (*with_ram == '0')
		CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	if (*with_ram == '1')	/* all is released that will be */
		CHECK(UNTIL(deadline, all_in_madvise(helper)));
	CHECK(is_busy() && faults_in(uffd) && (!veth || if_nametoindex(name)));
	if (*with_ram == '0')
		CHECK(!signal_one(helper, SIGCONT) && leaves(helper));
	else
		CHECK(reads_on(uffd, helper));
	CHECK(!is_busy() && !faults_in(uffd) && UNTIL(deadline, !if_nametoindex(name)));
	close(uffd);
	close(chan[0]);
	if (!veth)
		SKIP("no veth; executable and userfaultfd were tried");
	return NULL;
}

static const char *lasts_to_the_end(void)
{
	const char *r;

	TRY(copy_executable());
	r = lasts("0");
	if (!r || *r == 'S')
		r = lasts("1");
	unlink(copy);
	return r;
}

static const char *hung_reader(void)
{
	pid_t helper;
	int uffd, st;

	chunks = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP("no userfaultfd");
	CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
	CHECK(reap(helper, &st));	/* in a minute, whoever reads or not */
	return NULL;
}
#else
static const char *release_first(void) { SKIP("needs linux/userfaultfd.h and if_tun.h"); }
static const char *threads(void) { SKIP("needs linux/userfaultfd.h"); }
static const char *hung_reader(void) { SKIP("needs linux/userfaultfd.h"); }
static const char *rings_that_go(void) { SKIP("needs linux/userfaultfd.h"); }
static const char *lasts_to_the_end(void) { SKIP("needs linux/userfaultfd.h"); }
static int lasting(const char *with_ram) { return !with_ram; }
static const char *unshare_refused(void) { SKIP("needs linux/userfaultfd.h"); }
#endif

static int kind;
static const char *const kinds[] = {
	"none", "one", "eight", "overlapping", "unaligned", "stale", "removed", "longer than mapped",
	"around the image", "all there is", "before start", "locked", "huge", "memfd", "hugetlb",
	"1 GiB hugetlb", "sealed beside", "no access", "many mappings beside",
};
enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

/* Sets sh->second where the machine cannot do that kind. */
static void start_with_kind(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)mib << 20;
	const char *k = kinds[kind];
	size_t sealed;
	char *p;
	int i, fd;

#define IS(s) (!strcmp(k, s))
#define RAM(at, n) MUST(async_teardown_ram(at, n) == 0)
	if (!IS("before start"))
		start();
	make_ram(size);
	memset(ram, 1, size);
	if (IS("one") || IS("before start"))
		RAM(ram, size);
	else if (IS("eight")) {
		for (i = 0; i < 8; i++)
			RAM(ram + (size_t)i * (size / 8), size / 8);
		MUST(async_teardown_ram(ram + 1, 1) == -ENOSPC);
		RAM(ram, size / 8);		/* it is there already */
		RAM(ram + size / 8, 0);		/* room for another */
		RAM(ram + 1, 1);
	} else if (IS("overlapping")) {
		RAM(ram, size / 2);
		RAM(ram + size / 4, size / 2);
		RAM(ram + size / 8, size / 8);
	} else if (IS("unaligned"))
		RAM(ram + 123, size - 1000);
	else if (IS("stale")) {
		RAM(ram, size);
		MUST(!munmap(ram, size / 2));
	} else if (IS("removed")) {
		RAM(ram, size);
		RAM(ram, 0);
		RAM(ram, 0);
	} else if (IS("longer than mapped"))
		RAM(ram, (~0UL >> (sizeof(long) == 8 ? 9 : 0)) - (uintptr_t)ram);
	else if (IS("around the image"))
		RAM((char *)((uintptr_t)&atd_shared & ~(uintptr_t)0xffff) - 0x10000, 0x400000);
	else if (IS("all there is"))
		RAM((void *)(uintptr_t)1, (~0UL >> (sizeof(long) == 8 ? 9 : 0)) - 1);
	else if (IS("locked")) {
		RAM(ram, size);
		sh->second = mlock(ram, size) != 0;
	} else if (IS("huge")) {
		make_ram(4 * size);
		madvise(ram, 4 * size, MADV_HUGEPAGE);
		memset(ram, 1, 4 * size);
		RAM(ram + page, 4 * size - 3 * page);
	} else if (IS("memfd")) {
		MUST((fd = memfd_create("ram", 0)) >= 0 && !ftruncate(fd, (off_t)size));
		ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		MUST(ram != MAP_FAILED);
		memset(ram, 1, size);
		RAM(ram, size);
	} else if (IS("hugetlb") || IS("1 GiB hugetlb")) {
		size_t huge = IS("hugetlb") ? 4 << 20 : (size_t)1 << 30;

		p = sizeof(long) == 4 ? MAP_FAILED : mmap(NULL, huge, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (IS("hugetlb") ? 0 : 30 << 26), -1, 0);
		sh->second = p == MAP_FAILED;
		if (!sh->second) {
			memset(p, 1, huge);
			/* the rest of a huge page cannot be unmapped */
			RAM(p + page, huge / 2);
		}
	} else if (IS("sealed beside")) {
		RAM(ram, size / 2);
		sh->second = syscall(462 /* mseal */, ram + 3 * size / 4, 5 * page, 0) != 0;
		/* and more than can be passed over page by page */
		sealed = (size_t)1 << (sizeof(long) == 4 || effort(100) < 10 ? 28 : 38);
		p = mmap(NULL, sealed, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p != MAP_FAILED)
			syscall(462, p, sealed, 0);
	} else if (IS("no access")) {
		RAM(ram, size);
		MUST(!mprotect(ram + size / 4, size / 4, PROT_NONE));
	} else if (IS("many mappings beside")) {
		for (i = 0; i < 5000; i++)
			if (mmap(NULL, page, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
				break;
		RAM(ram, size);
	}
	if (sizeof(long) == 8)	/* a tag, or nonsense */
		MUST(async_teardown_ram(ram, 1UL << (8 * sizeof(long) - 8)) == -EINVAL);
	MUST(async_teardown_ram(NULL, 1) == -EINVAL && async_teardown_ram((void *)(uintptr_t)page, ~0UL) == -EINVAL);
	if (IS("before start"))
		start();
}

static void set_huge_pages(int n)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "w");

	if (f) {
		fprintf(f, "%d\n", n);
		fclose(f);
	}
}

static const char *ram_kinds(void)
{
	static char skipped[200] = "SKIP not here:";
	int none = 0, pages = atoi(slurp("/proc/sys/vm/nr_hugepages", 0));
	pid_t helper;

	if (!pages)
		set_huge_pages(8);
	for (kind = 0; kind < KINDS; kind++) {
		TRY(spawn(start_with_kind));
		helper = sh->helper;
		if (sh->second) {
			none = 1;
			snprintf(skipped + strlen(skipped), sizeof(skipped) - strlen(skipped), " %s;", kinds[kind]);
		}
		snprintf(sh->broken, sizeof(sh->broken), "RAM: %s", kinds[kind]);
		if (!by_kill() || !reap(vmm, NULL) || !gone(helper))
			return sh->broken;
	}
	if (!pages)
		set_huge_pages(0);
	return none ? skipped : NULL;
}

static void change_ram_for_ever(void)
{
	int i;

	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	start();
	ready();
	for (i = 0; ; i++) {
		MUST(async_teardown_ram(ram + (i % 4) * 8192, ram_size / 2) == 0);
		MUST(async_teardown_ram(ram + (i % 3) * 8192, 0) == 0);
	}
}

static const char *killed_in_ram(void)
{
	pid_t helper;
	int i;

	for (i = 0; i < effort(60); i++) {
		TRY(spawn(change_ram_for_ever));
		helper = sh->helper;
		usleep((unsigned)(i * 37 % 1000));
		CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
	}
	return NULL;
}

static void start_and_stop_with_ram(void)
{
	make_ram(1 << 20);
	memset(ram, 1, ram_size);
	MUST(async_teardown_ram(ram, ram_size) == 0);
	ready();
	for (;;) {
		async_teardown_start();
		async_teardown_stop();
	}
}

static const char *killed_in_start(void)
{
	int i;

	for (i = 0; i < effort(200); i++) {
		TRY(spawn(start_and_stop_with_ram));
		usleep((unsigned)(i * 61 % 2000));
		CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
		CHECK(UNTIL(deadline, waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD));
	}
	return NULL;
}

static const char *stopped_in_release(void)
{
	int i;

	for (i = 0; i < effort(60); i++) {
		struct timespec t = { 0, i * 50000 };

		kind = 1;
		TRY(spawn(start_with_kind));
		CHECK(by_kill());
		nanosleep(&t, NULL);
		signal_one(sh->helper, SIGSTOP);
		CHECK(reap(vmm, NULL));
		signal_one(sh->helper, SIGCONT);
		CHECK(leaves(sh->helper));
	}
	return NULL;
}

/* A child of vfork that has yet to call execve runs on the VMM's memory. */
static void *vfork_and_wait(void *arg)
{
	(void)arg;
	if (!vfork()) {
		sh->target = getpid();
		sh->alive = 1;
		while (!sh->go)
			nap();
		sh->passed = 1;
		_exit(7);
	}
	return NULL;
}

static void start_beside_vfork(void)
{
	pthread_t t;

	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	MUST(async_teardown_ram(ram, ram_size) == 0);
	start();
	MUST(!pthread_create(&t, NULL, vfork_and_wait, NULL));
	MUST(UNTIL(deadline, sh->alive));
}

static const char *vfork_in_flight(void)
{
	pid_t helper, child;
	int st, alone;

	TRY(spawn(start_beside_vfork));
	helper = sh->helper, child = sh->target;
	alone = threads_of(helper) == 1;
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(leaves(helper));
	if (alone) {
		/* it has seen the child, and left the memory to it */
		CHECK(mm_held() && state(child) != 'Z');
		sh->go = 1;
		CHECK(reap(child, &st) && WIFEXITED(st) && WEXITSTATUS(st) == 7 && sh->passed);
	} else
		CHECK(reap(child, &st) && WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV);
	CHECK(mm_freed());
	return NULL;
}

/* A second copy of the header, private to a file or library that may be linked. */
extern int second_start(void *start, unsigned long size) __attribute__((weak));

static void start_two(void)
{
	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	MUST(async_teardown_ram(ram, ram_size) == 0);
	start();
	sh->second = second_start(threads_wanted ? ram : NULL, ram_size);
	MUST(sh->second > 0 && sh->second != sh->helper);
}

static const char *two_copies(void)
{
	pid_t first, second;
	int i, st[2];

	/* the second one without and with RAM of its own */
	for (i = 0; i < 2 * effort(10); i++) {
		threads_wanted = i % 2;
		TRY(spawn(start_two));
		first = sh->helper, second = sh->second;
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(reap(first, &st[0]) && reap(second, &st[1]) && mm_freed());
		/* One thread waits for the other helper.  Several do not, and if they are
		 * in another image it does not survive. */
		if (ASYNC_TEARDOWN_THREADS == 1)
			CHECK(st[0] == 0 && st[1] == 0);
	}
	return NULL;
}

static void fork_with_ram(void)
{
	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	MUST(async_teardown_ram(ram, ram_size) == 0);
	start_and_fork();
}

static const char *fork_has_ram(void)
{
	pid_t helper, child, childs;

	TRY(spawn(fork_with_ram));
	helper = sh->helper, childs = sh->second, child = sh->target;
	CHECK(by_kill() && reap(vmm, NULL) && leaves(helper));
	CHECK(asleep(child) && mm_held());	/* the child has its own copy */
	CHECK(!signal_one(child, SIGKILL) && reap(child, NULL) && gone(childs));
	return NULL;
}

static void start_at_third_thread(void)
{
	/* this one, the one that starts the helper, the helper, one thread of it */
	struct rlimit four = { 4, 4 };

	if (!geteuid())
		MUST(!setresuid(54322, 54322, 54322));
	MUST(!setrlimit(RLIMIT_NPROC, &four));
	sh->result = async_teardown_start();
	MUST(waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD ? sh->result < 0 : sh->result > 0);
}

static const char *limit_at_third_thread(void)
{
	TRY(spawn(start));
	if (ASYNC_TEARDOWN_THREADS < 3 || !has_pidfd(sh->helper) || geteuid()) {
		TRY(killed_asynchronously());
		SKIP("needs root, a pidfd and three threads");
	}
	TRY(killed_asynchronously());
	TRY(spawn(start_at_third_thread));
	CHECK(sh->result == -EAGAIN);
	return killed_synchronously();
}

/* --- keep ------------------------------------------------------------------------- */

static const char tmpfs[] = "/tmp";	/* mounted there, where only the test sees it */

/* A file system whose memory can be counted, for want of a guest_memfd. */
static const char *mount_tmpfs(void)
{
	if (geteuid())
		SKIP("needs root, to mount");
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(!mount("atd", tmpfs, "tmpfs", 0, "size=1g"));
	return NULL;
}

static long used_mib(void)
{
	struct statfs s;

	return statfs(tmpfs, &s) ? -1 : (long)((uint64_t)(s.f_blocks - s.f_bfree) * (uint64_t)s.f_bsize >> 20);
}

static int make_file(int n)
{
	static char block[1 << 20];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/XXXXXX", tmpfs);
	MUST((fd = mkstemp(path)) >= 0 && !unlink(path));
	memset(block, 1, sizeof(block));
	while (n-- > 0)
		MUST(write(fd, block, sizeof(block)) == sizeof(block));
	return fd;
}

static int gates[3][2];

/* kind: 0: not kept; 1: kept; 2: kept, and RAM is released first; 3 and 4: a shared
 * file is mapped, too, and is RAM or not */
static void start_with_kept(void)
{
	struct rlimit lim = { 16, 16 };
	int fds[4], i;

	fds[0] = gates[0][1];
	fds[1] = fcntl(make_file(32), F_DUPFD, 700);	/* high, and above the limit later */
	fds[2] = gates[1][1];
	fds[3] = gates[2][1];
	MUST(fds[1] >= 700);
	for (i = 0; i < 700; i++)
		if (i != fds[0] && i != fds[2] && i != fds[3] && (i > 20 || i == 0))
			close(i);
	for (i = 3; i < 21; i++)	/* the file's first descriptor */
		if (i != fds[0] && i != fds[2] && i != fds[3])
			close(i);
	if (kind >= 2) {
		make_ram((size_t)mib << 20);
		memset(ram, 1, ram_size);
	}
	if (kind >= 3) {
		i = make_file(mib);
		ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, i, 0);
		MUST(ram != MAP_FAILED && !close(i));
	}
	if (kind == 2 || kind == 3)
		MUST(async_teardown_ram(ram, ram_size) == 0);
	MUST(!setrlimit(RLIMIT_NOFILE, &lim));
	MUST(async_teardown_keep(fds, kind ? 4 : 0) == 0);
	start();
	MUST(async_teardown_keep(NULL, 0) == 0);	/* is for the next start */
}

static int shut(int i)
{
	struct pollfd p = { gates[i][0], POLLIN, 0 };

	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

static const char *keeps(void)
{
	pid_t helper;
	int i;

	TRY(mount_tmpfs());
	for (kind = 0; kind < 5; kind++) {
		for (i = 0; i < 3; i++)
			CHECK(!pipe(gates[i]));
		TRY(spawn(start_with_kept));
		helper = sh->helper;
		for (i = 0; i < 3; i++)
			close(gates[i][1]);
		CHECK(used_mib() >= 32);
		CHECK(open_files(helper) - 4 * !!kind == 0 || open_files(helper) - 4 * !!kind == 1);
		CHECK(freeze(helper));
		CHECK(by_kill() && reap(vmm, NULL));
		/* This is the difference: what is not kept is freed before wait returns. */
		CHECK(kind ? used_mib() >= 32 && !shut(0) : used_mib() == 0 && shut(2));
		CHECK(!signal_one(helper, SIGCONT));
		/* Each is closed when those before it are, */
		CHECK(UNTIL(deadline, shut(1)));
		CHECK(shut(0) && used_mib() == 0);	/* mapped files, too */
		/* and the last one when all else is free, too. */
		CHECK(UNTIL(deadline, shut(2)));
		if (kind)
			CHECK(!mm_held() && rss_kib(helper) == 0);
		CHECK(gone(helper));
		for (i = 0; i < 3; i++)
			close(gates[i][0]);
	}
	return NULL;
}

static void keep_wrong(void)
{
	int fds[9] = { 0, 0, 0, 0, 0, 0, 0, 0, 0 }, bad = -1, closed = 500;
	struct rlimit few = { 0, 0 };

	/* Without close_range, /proc and ppoll it closes a million, one by one. */
	if (syscall(ATD_NR_CLOSE_RANGE, 1 << 20, 1 << 20, 0))
		few.rlim_cur = few.rlim_max = 64;
	MUST(async_teardown_keep(fds, 9) == -EINVAL && async_teardown_keep(fds, -1) == -EINVAL);
	MUST(async_teardown_keep(fds, 2) == -EINVAL);	/* twice the same */
	MUST(async_teardown_keep(&bad, 1) == -EBADF);
	close(closed);
	MUST(async_teardown_keep(&closed, 1) == 0);
	fails_with(-EBADF);
	MUST(!setrlimit(RLIMIT_NOFILE, &few));
	fails_with(-EBADF);
	fds[0] = 0, fds[1] = 2;
	MUST(async_teardown_keep(fds, 2) == 0);
	start();
	MUST(async_teardown_stop() == 0);
	MUST(async_teardown_keep(fds, 0) == 0);
	start();
}

static const char *keeps_what_is_open(void)
{
	TRY(spawn(keep_wrong));
	CHECK(open_files(sh->helper) <= 1);
	return killed_asynchronously();
}

#if __has_include(<linux/userfaultfd.h>) && __has_include(<linux/if_tun.h>)
/* A kept socket carries what the VMM comes to have later. */
static void start_with_socket(void)
{
	int pair[2], kept[2], fd, i;

	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	kept[0] = pair[1];
	kept[1] = gates[0][1];
	MUST(async_teardown_keep(kept, 2) == 0);
	start();
	close(pair[1]);
	for (i = 0; i < 16; i++) {
		fd = make_file(2);
		send_fd(pair[0], fd);
		close(fd);
	}
}

static const char *keeps_in_socket(void)
{
	pid_t helper;

	TRY(mount_tmpfs());
	CHECK(!pipe(gates[0]));
	TRY(spawn(start_with_socket));
	close(gates[0][1]);
	helper = sh->helper;
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(used_mib() >= 32 && !shut(0));
	CHECK(!signal_one(helper, SIGCONT));
	CHECK(UNTIL(deadline, shut(0)));
	CHECK(used_mib() == 0);
	CHECK(gone(helper));
	return NULL;
}
#else
static const char *keeps_in_socket(void) { SKIP("shares a function with tests that lack a header"); }
#endif

/* --- somebody takes over the VMM, and through it the helper ------------- */

#if defined(__x86_64__) || defined(__aarch64__)
static int attempt;
static pid_t bystander;

static void evil(void)
{
	static char *argv[] = { (char *)(uintptr_t)"true", NULL };
	long r = 0;

	sh->entered = 1;
	switch (attempt) {
	case 0: break;	/* stay within the list */
	case 1: r = atd_syscall(__NR_openat, AT_FDCWD, atd_arg("/etc/passwd"), 0, 0, 0); break;
	case 2: r = atd_syscall(__NR_execve, atd_arg("/bin/true"), atd_arg(argv), 0, 0, 0); break;
	case 3: r = atd_syscall(__NR_kill, bystander, SIGKILL, 0, 0, 0); break;
	case 4: r = atd_syscall(__NR_sendto, 0, atd_arg(""), 1, 0, 0); break;
	case 5: r = atd_syscall(__NR_clone, SIGCHLD, 0, 0, 0, 0); break;
	case 6: r = atd_syscall(__NR_write, 1, atd_arg("x"), 1, 0, 0); break;
#ifdef __x86_64__
	case 7: r = atd_syscall(0x40000000 | __NR_getppid, 0, 0, 0, 0, 0); break;
	case 8:	/* a listed number, but i386's fgetxattr */
		__asm__ volatile("int $0x80" : "=a"(r) : "0"(__NR_exit_group) : "memory");
		break;
#endif
	}
	(void)r;
	sh->passed = 1;
	atd_syscall(__NR_exit_group, 42, 0, 0, 0, 0);
}

/* Rewrites the code that the helper returns to when it wakes. */
static void start_taken_over(void)
{
#ifdef __x86_64__
	unsigned char jump[] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0 };
	const int at = 2;
#else
	uint32_t jump[] = { 0x58000050 /* ldr x16, .+8 */, 0xd61f0200 /* br x16 */, 0, 0 };
	const int at = 8;
#endif
	void (*to)(void) = evil;
	char *word, *pc, *page;
	size_t size = (size_t)sysconf(_SC_PAGESIZE);

	start();
	MUST(UNTIL(deadline, state(sh->helper) == 'S' &&
		(word = strrchr(slurp("/proc/%d/syscall", sh->helper), ' '))));
	pc = (char *)(uintptr_t)strtoull(word + 1, NULL, 16);
	memcpy((char *)jump + at, &to, sizeof(to));
	page = (char *)((uintptr_t)pc & ~(size - 1));
	MUST(!mprotect(page, 2 * size, PROT_READ | PROT_WRITE | PROT_EXEC));
	memcpy(pc, jump, sizeof(jump));
	__builtin___clear_cache(pc, pc + sizeof(jump));
}

static const char *taken_over(void)
{
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };
	int st, last = 6;
	pid_t helper;

#ifdef __x86_64__
	last = 8;
#endif
	setrlimit(RLIMIT_CORE, &core);	/* where we may */
	CHECK((bystander = fork()) >= 0);
	if (!bystander) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	for (attempt = 0; attempt <= last; attempt++) {
		TRY(spawn(start_taken_over));
		helper = sh->helper;
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(UNTIL(deadline, waitpid(helper, &st, WNOHANG | __WALL) == helper));
		CHECK(sh->entered && mm_freed());
		if (attempt == 0)
			CHECK(sh->passed && WIFEXITED(st) && WEXITSTATUS(st) == 42);
		else
			CHECK(!sh->passed && WIFSIGNALED(st) && !WCOREDUMP(st) && (WTERMSIG(st) == SIGSYS ||
				(attempt == 8 && WTERMSIG(st) == SIGSEGV)));	/* a kernel without int $0x80 */
	}
	CHECK(asleep(bystander));
	CHECK(!signal_one(bystander, SIGKILL) && reap(bystander, NULL));
	return NULL;
}
#else
static const char *taken_over(void)
{
	SKIP("knows how to rewrite code only on x86-64 and aarch64");
}
#endif

static void measure_stack(void)
{
	unsigned i;

	start();
	for (i = 0; i < sizeof(atd_shared.stack) && !atd_shared.stack[i]; i++)
		;
	sh->counter = (int)i;
}

/* As deep as it goes while it frees RAM; the address is the same in the judge. */
static const char *stack_is_enough(void)
{
	int fd = -1;

	TRY(spawn(measure_stack));
	CHECK(sh->counter >= 512);
	TRY(killed_asynchronously());
	if (getenv("VERBOSE"))
		printf("# set-up: %d bytes of the stack never used\n", sh->counter);
#ifdef UFFD_API
	char stack[sizeof(atd_shared.stack)], path[64];
	int i, uffd = -1;
	pid_t helper;

	chunks = 2 * ASYNC_TEARDOWN_THREADS;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd >= 0) {
		CHECK(by_kill() && reap(vmm, NULL) && mm_freed() && UNTIL(deadline, all_in_madvise(helper)));
		snprintf(path, sizeof(path), "/proc/%d/mem", helper);
		if ((fd = open(path, O_RDONLY)) >= 0) {
			CHECK(pread(fd, stack, sizeof(stack), (off_t)(uintptr_t)atd_shared.stack) == sizeof(stack));
			for (i = 0; i < (int)sizeof(stack) && !stack[i]; i++)
				;
			if (getenv("VERBOSE"))
				printf("# release: %d bytes of the stack never used\n", i);
			CHECK(i >= 512);
#if ASYNC_TEARDOWN_THREADS > 1
			CHECK(pread(fd, stack, sizeof(stack), (off_t)(uintptr_t)atd_shared.worker_stacks[0]) == sizeof(stack));
			for (i = 0; i < (int)sizeof(stack) && !stack[i]; i++)
				;
			if (getenv("VERBOSE"))
				printf("# other threads: %d bytes of the stack never used\n", i);
			CHECK(i >= 512);
#endif
			close(fd);
		}
		CHECK(reads_on(uffd, helper));
	} else
		CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
#endif
	if (fd < 0)
		SKIP("the release could not be looked into");
	return NULL;
}

static const struct {
	const char *name;
	const char *(*run)(void);
	const char *says;
} tests[] = {
	{ "ends", ends, "exit, abort, SIGSEGV, SIGTERM, SIGKILL: reaped while the stopped helper has the memory" },
	{ "what_it_is", what_it_is, "the helper's name, session, parent and working directory" },
	{ "holds_nothing", holds_nothing, "holds no descriptor of the VMM's, even above RLIMIT_NOFILE" },
	{ "without_proc", without_proc, "holds none without /proc either" },
	{ "leaves_caller_alone", leaves_caller_alone, "errno, signal mask, dispositions, descriptors are the caller's own" },
	{ "start_stop", start_stop, "a thousand starts and stops leave nothing" },
	{ "two_threads_at_once", two_threads_at_once, "eight threads at once get the one helper" },
	{ "real_time", real_time, "from a real-time thread on one CPU, also where a filter refuses ppoll" },
	{ "process_limit", process_limit, "-EAGAIN at the process limit" },
	{ "seccomp_refuses", seccomp_refuses, "-EPERM where a filter refuses clone or kills the helper" },
	{ "seccomp_traps", seccomp_traps, "a filter that answers by SIGSYS: the VMM lives" },
	{ "pid_namespaces", pid_namespaces, "-EOPNOTSUPP for PID 1 of a PID namespace" },
	{ "unshared_pid_namespace", unshared_pid_namespace, "-EINVAL after unshare(CLONE_NEWPID), and the namespace is as it was" },
	{ "drops_uid", drops_uid, "the VMM drops root: no leak, and stop says -EPERM" },
	{ "starter_thread_ends", starter_thread_ends, "the thread that called start ends, its stack and TLS are unmapped" },
	{ "race_4", race_4, "4 threads killed, hundreds of times: never synchronous" },
	{ "race_64", race_64, "64 threads likewise" },
	{ "race_512", race_512, "512 threads likewise" },
	{ "race_slow", race_slow, "128 threads that are long in exiting, likewise" },
	{ "main_thread_exits", main_thread_exits, "the main thread leaves, the helper stays until the last one" },
	{ "churning_heap", churning_heap, "a thousand starts beside threads that malloc and free" },
	{ "forks", forks, "a forked child has no helper, and may have its own" },
	{ "forks_while_starting", forks_while_starting, "fork while another thread is in start" },
	{ "vfork_stops", vfork_stops, "stop in a vfork child, thousands of times: the parent's helper stays the parent's" },
	{ "daemonizes", daemonizes, "daemonizing before and after start" },
	{ "execs", execs, "stop, then exec: nothing left; exec alone: gone with the process, or when it polls" },
	{ "killed_by_group", killed_by_group, "kill -9 of the process group" },
	{ "terminals", terminals, "^C and a hangup of the terminal" },
	{ "wait_loops", wait_loops, "wait and SIGCHLD never tell of the helper's end" },
	{ "oom", oom, "OOM kill in a control group: both gone" },
	{ "frozen", frozen, "frozen and thawed with its control group" },
	{ "other_cgroup", other_cgroup, "the helper in another control group: the VMM's is empty, killed and removed" },
	{ "helper_killed", helper_killed, "helper killed: VMM undisturbed, next start makes another" },
	{ "signals", signals, "every other signal: stays" },
	{ "stopped_in_pause", stopped_in_pause, "stopped and continued on its way out" },
	{ "idle", idle, "idle for 10 s: not one wake-up; without pidfd, for 2 s: a few" },
	{ "sandbox", sandbox, "no effective capabilities, no_new_privs, a filter; the VMM's own unchanged" },
	{ "filter_list", filter_list, "the filter allows the listed calls and no other number" },
	{ "same_uid_peeks", same_uid_peeks, "nobody can read the VMM's memory through it who could not before" },
	{ "exact_filter", exact_filter, "start and stop under a filter of just the listed calls" },
	{ "sandboxes_itself", sandboxes_itself, "start, then the VMM's own chroot, setuid and filter" },
	{ "taken_over", taken_over, "taken over: open, execve, kill, sendto, clone, write, other ABIs are its death" },
	{ "requests", requests, "AIO in flight and an io_uring's files last until the helper is gone, other files do not" },
	{ "kvm", kvm, "a guest with two vCPUs is killed in KVM_RUN; nothing of it is left" },
	{ "group_stops", group_stops, "start while the process group is stopped and continued, hundreds of times" },
	{ "helper_held", helper_held, "-ETIMEDOUT when the helper is held by a debugger; the next start goes on" },
	{ "killed_in_set_up", killed_in_set_up, "-ECANCELED when the helper is killed before it is ready" },
	{ "slow_flush", slow_flush, "-ETIMEDOUT when a file's server does not answer; the next start goes on" },
	{ "timer_slack", timer_slack, "a timer slack of an hour delays neither start nor the helper" },
	{ "stale_lock", stale_lock, "-ETIMEDOUT under a lock whose holder is in another process of the same PID" },
	{ "interrupted", interrupted, "start and stop while a handler of SIGSYS interrupts them" },
	{ "no_thread_left", no_thread_left, "the thread that makes the helper is gone when start returns" },
	{ "pid_reused", pid_reused, "stop does not kill another child that has the helper's PID" },
	{ "impostor_stops", impostor_stops, "stop in a vfork child that has the VMM's number changes nothing" },
	{ "filter_is_tried", filter_is_tried, "-EPERM if the filter would kill its first call" },
	{ "sigmask_traps", sigmask_traps, "-EPERM where a handler answers rt_sigprocmask; it never runs in the helper" },
	{ "release_first", release_first, "RAM held up: socket in an io_uring, lock of a mapped file, TAP, packet ring are free before it" },
	{ "threads", threads, "its threads are named, sandboxed, and all free the RAM" },
	{ "unshare_refused", unshare_refused, "a filter refuses to say whether others use the memory: released all the same" },
	{ "hung_reader", hung_reader, "a userfaultfd's reader that never reads: gone after a minute" },
	{ "ram_kinds", ram_kinds, "all kinds of RAM ranges and of memory" },
	{ "killed_in_ram", killed_in_ram, "killed while it changes the ranges" },
	{ "killed_in_start", killed_in_start, "killed anywhere in start and stop, hundreds of times: nothing left" },
	{ "stopped_in_release", stopped_in_release, "stopped and continued while it releases" },
	{ "vfork_in_flight", vfork_in_flight, "a vfork child on the memory: one thread leaves it alone, several end it" },
	{ "fork_has_ram", fork_has_ram, "a forked child's helper frees the child's" },
	{ "limit_at_third_thread", limit_at_third_thread, "-EAGAIN at the process limit of the third thread, nothing left" },
	{ "keeps", keeps, "memory behind a kept tmpfs file, mapped memory, both: EOF of a pipe kept last" },
	{ "keeps_what_is_open", keeps_what_is_open, "-EBADF for what is not open, and other errors of keep" },
	{ "keeps_in_socket", keeps_in_socket, "files that were sent to a kept socket after start" },
	{ "guest_memfd", guest_memfd, "a real guest_memfd, kept: reaped before it is freed, KVM gone before the end of file" },
	{ "rings_that_go", rings_that_go, "SQPOLL and NO_MMAP: an io_uring's requests end with the VMM, not with the helper" },
	{ "lasts_to_the_end", lasts_to_the_end, "the helper's to its end: a veth's namespace, the executable; a userfaultfd's handler gets ESRCH then" },
	{ "signals_wait", signals_wait, "SIGTERM waits while start and stop do, SIGKILL ends the VMM" },
	{ "ports_stay", ports_stay, "ioperm of before start is the helper's, even when the VMM drops it" },
	{ "stack_is_enough", stack_is_enough, "half a kilobyte of its stack is never touched" },
	{ "two_copies", two_copies, "two copies of the header in one process: both helpers go" },	/* last */
};
#define TESTS ((int)(sizeof(tests) / sizeof(tests[0])) - !second_start)

/* Whatever is left of a test is our child now.  Ends it, and says how many. */
static int left_behind(void)
{
	struct dirent *e;
	DIR *d;
	int n = 0;

	UNTIL(deadline, waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD);
	if (waitpid(-1, NULL, WNOHANG | __WALL) < 0)
		return 0;
	while ((d = opendir("/proc"))) {
		int more = 0;

		while ((e = readdir(d)))
			if (atoi(e->d_name) && atoi(status(atoi(e->d_name), "PPid")) == getpid()) {
				signal_one(atoi(e->d_name), SIGKILL);
				waitpid(atoi(e->d_name), NULL, __WALL);
				n++, more = 1;
			}
		closedir(d);
		if (!more)
			break;
	}
	return n;
}

static int run(int i)
{
	const char *r, *verdict = sh->verdict;
	pid_t judge;
	int st, left;

	memset(sh, 0, sizeof(*sh));
	judge = fork();
	if (!judge) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		alarm((unsigned)(15 * deadline));
		r = tests[i].run();
		snprintf(sh->verdict, sizeof(sh->verdict), "%s", r ? r : "");
		_exit(0);
	}
	waitpid(judge, &st, 0);
	put("freezer.state", "THAWED");		/* if the test has failed: what is */
	put("cgroup.freeze", "0");		/* frozen does not die */
	left = left_behind();
	rmdir(sh->cgroup);
	if (st)
		snprintf(sh->verdict, sizeof(sh->verdict), "the judge ended with status 0x%x", (unsigned)st);
	else if (left && !*verdict)
		snprintf(sh->verdict, sizeof(sh->verdict), "left %d processes behind", left);
	if (!*verdict || !strncmp(verdict, "SKIP ", 5)) {
		printf("ok - %s: %s%s%s\n", tests[i].name, tests[i].says, *verdict ? " # " : "", verdict);
		return 0;
	}
	printf("not ok - %s: %s\n# %s\n", tests[i].name, tests[i].says, verdict);
	return 1;
}

/*
 * For "deny": start has to fail with this error, and to have changed nothing.
 * In no need of a call that the helper needs too, for it may be refused here.
 */
static int refused(int error)
{
	long files = fd_map();
	int i, ret;

	for (i = 0; i < 3; i++) {
		errno = 77;
		ret = async_teardown_start();
		if (ret != -error || errno != 77) {
			printf("start returned %d, errno is %d\n", ret, errno);
			return 1;
		}
		errno = 77;
		ret = async_teardown_stop();
		if ((ret != 0 && ret != -error) || errno != 77) {
			printf("stop returned %d\n", ret);
			return 1;
		}
	}
	if (fd_map() != files) {
		puts("descriptors have changed");
		return 1;
	}
	if (syscall(SYS_waitid, P_ALL, 0, NULL, WEXITED | WNOHANG | __WALL, NULL) != -1 || errno != ECHILD) {
		puts("a child is left");
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int i, a, names, failed = 0;

	if (argc > 1 && !strcmp(argv[1], "--pause"))
		for (;;)
			pause();
	if (argc > 2 && !strcmp(argv[1], "--lasting"))
		return lasting(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "--refused"))
		return refused(atoi(argv[2]));
	if (argc > 1 && !strcmp(argv[1], "-n")) {
		printf("%d\n", TESTS);
		return 0;
	}
	names = argc - 1;
	for (a = 1; a < argc; a++)
		if (strchr(argv[a], '=')) {
			putenv(argv[a]);
			names--;
		}
	if (getenv("MIB"))
		mib = atoi(getenv("MIB"));
	if (getenv("SLOW"))
		deadline *= atof(getenv("SLOW"));
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED)
		return 2;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < TESTS; i++) {
		for (a = 1; a < argc && strcmp(argv[a], tests[i].name); a++)
			;
		if (!names || a < argc)
			failed |= run(i);
	}
	return failed;
}
