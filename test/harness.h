/*
 * harness.h - what every test needs
 *
 * A test is a function without arguments.  It runs in a process of its own, the judge,
 * which is the subreaper of the VMM that it starts and of the VMM's helper.  It returns
 * NULL if all was right, what was wrong if a CHECK failed, or "SKIP why".
 *
 *	static void start_there(void) { MUST(!chdir("/proc")); start(); }	in the VMM
 *
 *	static const char *starts_there(void)					in the judge
 *	{
 *		TRY(spawn(start_there));
 *		CHECK(asleep(sh->helper));
 *		return killed_asynchronously();
 *	}
 *
 * Whether an address space still exists is asked of the kernel: a mapped file keeps its
 * flock until the last process that has it mapped has torn it down (mm_held, mm_freed).
 *
 * A test proves states and the order of events, not times, and every wait ends at the
 * deadline (UNTIL).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ATD_PATIENCE 60		/* for hung_reader, which would take an hour */
#include "../async_teardown.h"

enum { NOBODY = 65534 };

/* From the environment: MIB, and for emulated machines SLOW, a factor for the
 * deadline; also RUNS, see effort(). */
static int mib = 4;		/* how much memory a VMM has */
static double deadline = 120;	/* seconds, for whatever has to happen */

/* One line of a topic's table. */
struct test {
	const char *name;
	const char *(*run)(void);
	const char *says;
};

/* Between the judge and its VMMs. */
static struct {
	volatile int ready, helper, second, result, go, alive, counter;
	volatile int entered, passed, attempt, target, daemon;
	char broken[256];
	char verdict[256];	/* from here on one a test, not one a VMM */
	char cgroup[128];	/* this, and the huge pages, to be put back after the test */
	int huge_pages;
} *sh;

static int lockfd = -1;
static char *lock_page;		/* in the VMM, where lockfd's file is mapped */
static pid_t vmm;

static int last_status = -1;	/* of what was reaped last; -1 if it was not, in time */

/* A check that fails ends the test; in a VMM it tells the judge.  The first one counts.
 * A and b are what was compared, if something was. */
static char *broken(const char *file, int line, const char *what, const long *a, const long *b)
{
	char whole[sizeof(sh->broken)] = "", values[64] = "";

	if (*sh->broken)
		return sh->broken;
	if (a)
		snprintf(values, sizeof(values), " for %ld and %ld", *a, *b);
	/* The judge reads as soon as there is a first character. */
	snprintf(whole, sizeof(whole), "%s:%d: %s does not hold%s (errno %d, last wait status 0x%x)",
		file, line, what, values, errno, (unsigned)last_status);
	memcpy(sh->broken + 1, whole + 1, sizeof(whole) - 1);
	__atomic_store_n(sh->broken, *whole, __ATOMIC_RELEASE);
	return sh->broken;
}
#define FAILED(what, a, b) broken(strrchr("/" __FILE__, '/') + 1, __LINE__, what, a, b)
#define CHECK(c) do { if (!(c)) return FAILED(#c, NULL, NULL); } while (0)
#define MUST(c) do { if (!(c)) { FAILED(#c, NULL, NULL); _exit(99); } } while (0)
/* These say what came: CHECK_INT(async_teardown_stop(), ==, 0). */
#define CHECK_INT(a, op, b) do { \
	long a_ = (long)(a), b_ = (long)(b); \
	if (!(a_ op b_)) return FAILED(#a " " #op " " #b, &a_, &b_); \
} while (0)
#define MUST_INT(a, op, b) do { \
	long a_ = (long)(a), b_ = (long)(b); \
	if (!(a_ op b_)) { FAILED(#a " " #op " " #b, &a_, &b_); _exit(99); } \
} while (0)
#define TRY(c) do { const char *r_ = (c); if (r_) return r_; } while (0)
#define SKIP(why) return "SKIP " why
/* For want of root; as root, for want of this. */
#define SKIP_ROOT(why) return geteuid() ? "SKIP needs root" : "SKIP " why
/* The same reason in the same words: run.sh tells each one once. */
#define OF_LINUX_5_16 "needs Linux 5.16; the rest was tried"
#define NO_CGROUP "no control group: needs a writable /sys/fs/cgroup that has its controller"
#define NO_NETWORK "no TAP or veth: a container needs CAP_NET_ADMIN and /dev/net/tun; the rest was tried"
#define NO_PID_NAMESPACE "no PID namespace: needs root (in a container, CAP_SYS_ADMIN), or a user namespace"
#define NO_THREADS "needs three threads in the helper: Linux 5.3, ASYNC_TEARDOWN_THREADS of 3 or more, no seccomp filter around"
#define NO_TRACING "may not trace: see kernel.yama.ptrace_scope; a container needs CAP_SYS_PTRACE"
#define NO_URING "no io_uring: see kernel.io_uring_disabled, or a container's seccomp profile; the rest was tried"
#define NO_USERFAULTFD "no userfaultfd: needs Linux 4.11, and a container a seccomp profile that allows it"

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
	last_status = -1;
	if (!UNTIL(deadline, waitpid(pid, &last_status, WNOHANG | __WALL) == pid))
		return 0;
	if (status)
		*status = last_status;
	return 1;
}

/* In a VMM: this child of its exits with 0. */
static int succeeds(pid_t child)
{
	return child > 0 && waitpid(child, &last_status, 0) == child && last_status == 0;
}

static int childless(void)
{
	return waitpid(-1, NULL, WNOHANG | __WALL) < 0 && errno == ECHILD;
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

	return reap(helper, &st) && st == 0;
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

static int linux_before(int major, int minor)
{
	struct utsname u;
	int is_major = 0, is_minor = 0;

	uname(&u);
	sscanf(u.release, "%d.%d", &is_major, &is_minor);
	return is_major < major || (is_major == major && is_minor < minor);
}

/* Then what kills a process as if to dump core kills all that share its memory. */
static int before_5_16(void)
{
	return linux_before(5, 16);
}

/* How often this thread has been given a CPU. */
static long thread_switches(pid_t tid)
{
	return atol(status(tid, "voluntary_ctxt_switches")) +
		atol(status(tid, "nonvoluntary_ctxt_switches"));
}

/* The same for all threads of a process. */
static long switches(pid_t pid)
{
	char path[64];
	struct dirent *e;
	long n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	if (!(d = opendir(path)))
		return 0;
	while ((e = readdir(d)))
		if (atoi(e->d_name))
			n += thread_switches(atoi(e->d_name));
	closedir(d);
	return n;
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

static int threads_of(pid_t pid) { return atoi(status(pid, "Threads")); }

/* The most descriptors that are the helper's own: a pidfd, and a pipe for its threads. */
static int own_files(pid_t helper)
{
	return threads_of(helper) > 1 ? 3 : 1;
}

/* Of one that keeps nothing. */
static int has_pidfd(pid_t helper)
{
	return open_files(helper) == own_files(helper);
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
	lock_page = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
	MUST(lock_page != MAP_FAILED);
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
	MUST_INT(ret, >, 0);
	MUST_INT(errno, ==, 77);
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
	CHECK_INT(vmm, >=, 0);
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
	CHECK((WIFSIGNALED(st) ? WTERMSIG(st) : -WEXITSTATUS(st)) == expect);
	if ((expect == SIGABRT || expect == SIGSEGV) && before_5_16()) {
		CHECK(reap(helper, &st) && mm_freed());
		return NULL;
	}
	CHECK(mm_held());
	CHECK_INT(rss_kib(helper), >=, mib * 1024L);
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

/* Kills the VMM while its helper runs. */
static const char *killed_and_gone(void)
{
	pid_t helper = sh->helper;

	CHECK(by_kill() && reap(vmm, NULL) && gone(helper));
	return NULL;
}

/* Kills a VMM without a helper: nobody is left who could free its memory later. */
static const char *killed_synchronously(void)
{
	CHECK(mm_held());
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(childless());
	CHECK(mm_freed());
	return NULL;
}

static void await_go(void)
{
	while (!sh->go)
		nap();
}
