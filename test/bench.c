/*
 * bench - every figure, side by side
 *
 *	bench [-r ROUNDS] [-m MiB] [-o CSV] [-s SVG]
 *	bench -p CSV [-s SVG]		only draws, and shows the medians and ratios
 *
 * In each round every case runs once, in random order, so that what disturbs
 * the machine disturbs them all.  A case is a process that fills memory, holds a
 * lock by a mapping, has an io_uring poll a socket (see measure.h), and is killed by
 * its supervisor, which is the subreaper.  From the kill
 *	exit	to the return of waitpid for the process
 *	lock	until the lock is free
 *	socket	until the other end of the socket sees the end of file; 0: no io_uring
 *	sign	until the end of file on the pipe that the helper keeps first; 0: none is kept
 *	back	to the end of the last descendant
 *	freed	until the helper has less than 5 % of it; only under a CPU quota, else 0
 * Medians and quartiles go to the terminal, all values to CSV, and a plot over
 * memory to SVG.  -m: the largest process; default: from what is free.
 */
#define _GNU_SOURCE
#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ASYNC_TEARDOWN_THREADS 256	/* the most; each case says how many of them it uses */

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "../async_teardown.h"
#include "measure.h"

enum variant { PLAIN, HELPER, RAM, FALLBACK, NAIVE, VARIANTS };
static const char *const variant_name[] = {
	"plain exit", "async_teardown", "async_teardown ram", "async_teardown without pidfd",
	"naive helper",
};

/*
 * What the memory is.  UNTOLD: besides, there are 256 MiB in 4 KiB pages of which the
 * helper is not told.  IN_FILE, IN_FILES: behind one descriptor or two, which the helper
 * keeps, and not mapped.
 */
enum memory { SMALL, HUGE_PAGES, SHARED, HUGETLB, UNTOLD, IN_FILE, IN_FILES, MEMORIES };
static const char *const memory_name[] = { "4K", "huge", "shared", "hugetlb", "untold", "memfd", "2 memfds" };
enum { UNTOLD_MIB = 256, HUGETLB_MIB = 2048 };

/*
 * How it ends.  IDLE, BUSY: killed, while the CPUs are so.  QUOTA: killed, when its threads
 * have used up the 5 % of a CPU that its control group has.  LEAVES, UNMAPS: it is asked
 * to end, and calls _exit, at once or when it has unmapped the memory.
 */
enum how { IDLE, BUSY, QUOTA, LEAVES, UNMAPS };
static const char *const how_name[] = { "idle", "busy", "quota", "leaves", "unmaps" };

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { MAX_CASES = 96, MAX_ROUNDS = 1000 };

enum moment { EXIT, AT_LOCK, AT_SOCKET, AT_SIGN, BACK, FREED, MOMENTS };
static const char *const moment_name[] = { "exit", "lock", "socket", "sign", "back" };

/* What is run.  What is not said is 0. */
struct key { int variant, helpers, mib, memory, idle, how; };
#define CASE(what, n, size, ...) \
	((struct key){ .variant = what, .helpers = n, .mib = size, __VA_ARGS__ })

static struct bench_case {
	struct key key;		/* helpers: the helper's threads.  idle: the process's, besides its first */
	int n;
	double ms[MOMENTS][MAX_ROUNDS];
} cases[MAX_CASES];
static int ncases, stayed, too_early, have_ring, have_hugetlb, have_quota;
static int least_huge = 100;	/* percent of what was to be in huge pages */

static void die(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	exit(1);	/* what it has started dies with it */
}

static pid_t fork_or_die(void)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		setpgid(0, 0);	/* ^C is the supervisor's */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	return pid;
}

/* --- the trick as people write it, for comparison ------------------------ */

static pid_t naive_parent;

static void naive_wait(int sig)
{
	(void)sig;
	while (getppid() == naive_parent)
		sleep(1);
	_exit(0);
}

static int naive_helper(void *arg)
{
	struct sigaction act;
	int fd;

	(void)arg;
	for (fd = 0; fd < 64; fd++)
		close(fd);
	memset(&act, 0, sizeof(act));
	act.sa_handler = naive_wait;
	sigaction(SIGHUP, &act, NULL);
	prctl(PR_SET_PDEATHSIG, SIGHUP);
	if (getppid() != naive_parent)
		_exit(0);
	for (;;)
		pause();
	return 0;
}

static int naive_start(void)
{
	static char stack[65536];

	naive_parent = getpid();
	return clone(naive_helper, stack + sizeof(stack), CLONE_VM, NULL);
}

/* --- all CPUs at once, to fill ---------------------------------------------- */

static char *block;
static size_t block_size;
static int cpus, parts;

static void *populate_part(void *arg)
{
	const size_t part = block_size / (size_t)parts & ~(size_t)0x1fffff;
	const size_t from = (size_t)arg * part;
	const size_t to = (int)(size_t)arg == parts - 1 ? block_size : from + part;

	madvise(block + from, to - from, MADV_POPULATE_WRITE);	/* since Linux 5.14 */
	return NULL;
}

static void populate(void)
{
	pthread_t t[64];
	int i;

	for (i = 0; i < parts; i++)
		if (pthread_create(&t[i], NULL, populate_part, (void *)(size_t)i))
			die("pthread_create");
	for (i = 0; i < parts; i++)
		pthread_join(t[i], NULL);
}

/* --- a control group with 5 % of a CPU --------------------------------------- */

static const char *group;	/* NULL: none can be made */

/* 0, or -1 */
static int group_write(const char *file, const char *value)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", group, file);
	f = fopen(path, "r+");
	if (!f)
		return -1;
	fputs(value, f);
	return fclose(f);
}

/* A new one for each run: what the last one has used up beyond its quota stays with it. */
static int group_make(void)
{
	static const char *const v[] = { "/sys/fs/cgroup/cpu/async-teardown-bench", "/sys/fs/cgroup/async-teardown-bench" };
	int i;

	for (i = 0; i < 2; i++) {
		group = v[i];
		if (mkdir(group, 0755) == 0) {
			if (group_write(i ? "cpu.max" : "cpu.cfs_quota_us", i ? "5000 100000" : "5000") == 0)
				return 1;
			rmdir(group);
		}
	}
	group = NULL;
	return 0;
}

/* --- the process with the memory ------------------------------------------- */

static void refuse_pidfd(void)
{
	static const struct atd_insn insns[] = {
		{ 0x20, 0, 0, 0 }, { 0x15, 0, 1, ATD_NR_PIDFD_OPEN },
		{ 0x06, 0, 0, 0x50000 | ENOSYS }, { 0x06, 0, 0, 0x7fff0000 },
	};
	static const struct atd_prog prog = { .len = 4, .insns = insns };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &prog, 0, 0))
		die("seccomp");
}

static void *idle_thread(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return NULL;
}

static void *busy_thread(void *arg)
{
	(void)arg;
	for (;;)
		;
	return NULL;
}

/* Makes the block, and touches all of it. */
static void fill(size_t size, enum memory memory)
{
	int fd = memory == SHARED ? memfd_create("bench", 0) : -1;
	int flags = memory == SHARED ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS |
		(memory == HUGETLB ? MAP_HUGETLB : MAP_NORESERVE);
	size_t i;

	if (fd >= 0 && ftruncate(fd, (off_t)size))
		die("memfd");
	block_size = size;
	block = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (block == MAP_FAILED)
		die("mmap");
	close(fd);
	if (memory == HUGE_PAGES)
		madvise(block, size, MADV_HUGEPAGE);
	if (size > 64 << 20)	/* in less time */
		populate();
	for (i = 0; i < size; i += 4096)
		block[i] = 1;
}

/* Percent of so many bytes that are in huge pages; 100 where that is not known. */
static int in_huge_pages(size_t size)
{
	char line[128];
	long kib = -1;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "AnonHugePages: %ld", &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib < 0 ? 100 : (int)((double)kib * 1024 * 100 / (double)size);
}

static int fill_file(size_t size)
{
	static char buf[1 << 20];
	int fd = memfd_create("bench", 0);
	size_t i;

	for (i = 0; fd >= 0 && i < size; i += sizeof(buf))
		if (write(fd, buf, sizeof(buf)) != sizeof(buf))
			fd = -1;
	if (fd < 0)
		die("memfd");
	return fd;
}

struct report { int helper, huge; };

static void process(const struct key *k, const struct resource held[MOMENTS], int report)
{
	const size_t size = (size_t)k->mib << 20;
	struct report r = { 0, 100 };
	int kept[4], files, n = 0, sig;
	pthread_attr_t attr;
	sigset_t term;
	pthread_t t;

	prctl(PR_SET_THP_DISABLE, k->memory != HUGE_PAGES, 0, 0, 0);
	for (sig = AT_LOCK; sig <= AT_SIGN; sig++)
		if (held[sig].there && resource_hold(&held[sig]))
			die("lock, or io_uring");
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (k->how >= LEAVES)
		sigprocmask(SIG_BLOCK, &term, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 131072);
	for (sig = 0; sig < k->idle; sig++)
		if (pthread_create(&t, &attr, idle_thread, NULL))
			die("pthread_create");

	/* The first kept descriptor is the sign, and the last one, if there is a sign,
	 * is the pipe of the report, for that one closes when all else is done. */
	if (k->variant == RAM)
		kept[n++] = held[AT_SIGN].there;
	files = k->memory == IN_FILE ? 1 : k->memory == IN_FILES ? 2 : 0;
	for (sig = 0; sig < files; sig++)
		kept[n++] = fill_file(size / (size_t)files);
	if (k->variant == RAM)
		kept[n++] = report;
	if (async_teardown_keep(kept, n))
		_exit(1);
	if (k->memory == UNTOLD)
		fill((size_t)UNTOLD_MIB << 20, SMALL);
	fill(files || !size ? 4096 : size, files ? SMALL : (enum memory)k->memory);
	if (k->memory == HUGE_PAGES)
		r.huge = in_huge_pages(size);
	if (k->how == QUOTA && (!group_make() || group_write("cgroup.procs", "0")))
		die("control group");
	if (k->variant == FALLBACK)
		refuse_pidfd();
	if (k->variant == RAM)
		async_teardown_ram(block, block_size);
	async_teardown_threads(k->helpers);
	if (k->variant == HELPER || k->variant == RAM || k->variant == FALLBACK)
		r.helper = async_teardown_start();
	else if (k->variant == NAIVE)
		r.helper = naive_start();
	if (write(report, &r, sizeof(r)) != sizeof(r))
		_exit(1);
	for (sig = 0; k->how == QUOTA && sig < 2 * cpus; sig++)
		pthread_create(&t, NULL, busy_thread, NULL);
	while (k->how < LEAVES)
		pause();
	sigwait(&term, &sig);
	if (k->how == UNMAPS)
		munmap(block, block_size);
	_exit(0);
}

/* --- the pool of hugetlb pages, and the end of every wait -------------------- */

static const char pool[] = "/proc/sys/vm/nr_hugepages";
static char pool_before[32];
static pid_t supervisor;

/* Async-signal-safe, as a handler has to be. */
static void restore_pool(void)
{
	int fd = have_hugetlb && getpid() == supervisor ? open(pool, O_WRONLY) : -1;

	if (fd >= 0 && write(fd, pool_before, strlen(pool_before)) > 0)
		have_hugetlb = 0;
	close(fd);
	if (group)
		rmdir(group);
}

/* Makes the pool larger by so many pages of 2 MiB; 0 if it cannot be so. */
static int enlarge_pool(int pages)
{
	long before = (long)number_in("/proc/sys/vm", "nr_hugepages");
	FILE *f = meminfo_mib("Hugepagesize") == 2 && before >= 0 ? fopen(pool, "w") : NULL;

	if (!f)
		return 0;
	snprintf(pool_before, sizeof(pool_before), "%ld\n", before);
	fprintf(f, "%ld\n", before + pages);
	fclose(f);
	have_hugetlb = 1;
	atexit(restore_pool);
	if ((long)number_in("/proc/sys/vm", "nr_hugepages") < before + pages)
		restore_pool();
	return have_hugetlb;
}

static volatile sig_atomic_t reaping;

static void on_alarm(int sig)
{
	static const char text[] = "bench: a process or a resource did not come to its end\n";

	(void)sig;
	if (reaping)
		return;
	restore_pool();
	_exit(write(2, text, sizeof(text) - 1) > 0);
}

/*
 * Waits for the helper; its CPU time in ms, < 0 if it stays for too long.  Asleep
 * until then, as for a plain exit: polling would take the CPU from the helper.
 */
static double reap_helper(pid_t helper, unsigned seconds)
{
	struct rusage use;
	pid_t pid;

	reaping = 1;
	alarm(seconds);		/* wait4 fails then */
	pid = wait4(helper, NULL, __WALL, &use);
	alarm(0);
	reaping = 0;
	if (pid != helper)
		return -1;
	return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1e3 +
		(double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e3;
}

/* When does the helper have less than 5 % of the memory?  It is throttled: the look takes
 * no CPU time from it. */
static double wait_freed(pid_t helper, int mib)
{
	char path[32];
	double size, pages;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", helper);
	for (alarm(60); (f = fopen(path, "r")); usleep(500)) {
		if (fscanf(f, "%lf %lf", &size, &pages) != 2)
			pages = 0;
		fclose(f);
		if (pages * (double)sysconf(_SC_PAGESIZE) < mib * 1048576.0 / 20)
			break;
	}
	alarm(0);
	return now_ms();
}

static pid_t spinners[256];

/* Keeps every CPU busy, or no longer. */
static void spin(int on)
{
	int i;

	for (i = 0; i < cpus && i < 256; i++) {
		if (!on) {
			kill(spinners[i], SIGKILL);
			waitpid(spinners[i], NULL, 0);
		} else if (!(spinners[i] = fork_or_die())) {
			for (;;)
				;
		}
	}
}

/* Runs a case once.  The CPU time of its helper, in ms. */
static double run(const struct key *k, unsigned settle_us, double ms[MOMENTS])
{
	struct resource held[MOMENTS];
	struct report r;
	int p[2], i;
	double t0, cpu = 0;
	pid_t pid;

	memset(held, 0, sizeof(held));
	if (pipe(p))
		die("pipe");
	if (resource_make(&held[AT_LOCK], LOCK))
		die("/tmp");
	have_ring = resource_make(&held[AT_SOCKET], SOCKET) == 0;
	if (k->variant == RAM && resource_make(&held[AT_SIGN], PIPE))
		die("pipe");
	held[AT_SIGN].lock = &held[AT_LOCK];
	alarm(300);
	pid = fork_or_die();
	if (!pid)
		process(k, held, p[1]);
	close(p[1]);
	if (read(p[0], &r, sizeof(r)) != sizeof(r) || r.helper < 0) {
		fprintf(stderr, "bench: a process of %d MiB did not come up\n", k->mib);
		exit(1);
	}
	close(p[0]);
	if (r.huge < least_huge)
		least_huge = r.huge;
	for (i = AT_LOCK; i <= AT_SIGN; i++)
		if (held[i].there && resource_watch(&held[i]))
			die("pthread_create");
	if (k->how == BUSY)
		spin(1);
	usleep(settle_us + (k->how == QUOTA ? (unsigned)rand() % 100000 : 0));	/* whenever in a period */

	t0 = now_ms();
	kill(pid, k->how >= LEAVES ? SIGTERM : SIGKILL);
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
	ms[EXIT] = ms[BACK] = ms[FREED] = now_ms() - t0;
	if (r.helper) {
		if (k->how == QUOTA)
			ms[FREED] = wait_freed(r.helper, k->mib) - t0;
		cpu = reap_helper(r.helper, 60);
		ms[BACK] = now_ms() - t0;
		if (cpu < 0) {	/* the worst that can happen */
			stayed++;
			kill(r.helper, SIGKILL);
			cpu = reap_helper(r.helper, 10);
		}
	}
	alarm(60);
	for (i = AT_SIGN; i >= AT_LOCK; i--)	/* the sign first, for it looks at the lock */
		ms[i] = held[i].there ? resource_wait(&held[i]) - t0 : 0;
	alarm(0);
	too_early += held[AT_SIGN].too_early;
	if (k->how != QUOTA)
		ms[FREED] = 0;
	else if (rmdir(group))
		die(group);
	if (k->how == BUSY)
		spin(0);
	return cpu;
}

/* --- statistics --------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double quantile(const double *v, int n, double q)
{
	double copy[MAX_ROUNDS], at = q * (n - 1);
	int i = (int)at;

	if (!n)
		return 0;
	memcpy(copy, v, (size_t)n * sizeof(*v));
	qsort(copy, (size_t)n, sizeof(*copy), compare);
	return i + 1 < n ? copy[i] + (at - i) * (copy[i + 1] - copy[i]) : copy[i];
}

static double median(const double *v, int n)
{
	return quantile(v, n, 0.5);
}

static long largest;	/* MiB */
static int adding;	/* the cases, and no figures yet */

static struct bench_case *find(struct key k)
{
	int i;

	for (i = 0; i < ncases; i++)
		if (!memcmp(&cases[i].key, &k, sizeof(k)))
			return &cases[i];
	return NULL;
}

static struct bench_case *add(struct key k)
{
	if (find(k))
		return find(k);
	if (ncases == MAX_CASES)
		abort();
	cases[ncases].key = k;
	return &cases[ncases++];
}

/* NULL if the machine cannot. */
static const struct bench_case *get(struct key k)
{
	if ((k.memory == HUGETLB && !have_hugetlb) || (k.how == QUOTA && !have_quota))
		return NULL;
	if (k.mib > largest)
		k.mib = (int)largest;
	return adding ? add(k) : find(k);
}

static double median_of(const struct bench_case *c, enum moment m)
{
	return c ? median(c->ms[m], c->n) : 0;
}

static void section(const char *what)
{
	if (!adding)
		printf("\n%s:\n", what);
}

static void figure(const char *what, double value)
{
	printf("  %-76s %7.*f\n", what, value < .1 ? 4 : 2, value);
}

/* Of the two medians.  While adding, adds the two cases instead. */
static void ratio(const char *what, struct key a, enum moment of, struct key b, enum moment to)
{
	const double x = median_of(get(a), of), y = median_of(get(b), to);
	char text[160];

	if (adding || x <= 0 || y <= 0)
		return;
	if (a.mib <= largest && b.mib <= largest) {
		figure(what, x / y);
		return;
	}
	snprintf(text, sizeof(text), "%s (here: %ld MiB)", what, largest);
	figure(text, x / y);
}

/* The time until all is back, and that of a plain exit in the same circumstances. */
static void back(const char *what, struct key k)
{
	struct key plain = k;

	plain.variant = PLAIN;
	plain.helpers = 0;
	ratio(what, k, BACK, plain, BACK);
}

/* --- the machine ----------------------------------------------------------------- */

/* Time that was stolen by the hypervisor or used by others, of all there is. */
static void cpu_times(double *stolen, double *total)
{
	double v[8] = { 0 };
	FILE *f = fopen("/proc/stat", "r");
	int i, n = f ? fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", v, v + 1, v + 2, v + 3, v + 4,
		v + 5, v + 6, v + 7) : 0;

	if (f)
		fclose(f);
	*stolen = n == 8 ? v[7] : 0;
	for (*total = 0, i = 0; i < n; i++)
		*total += v[i];
}

/* --- other figures ------------------------------------------------------------------ */

/* How long start takes, in us, in a process with so many descriptors, when the
 * helper keeps four of them, from the given one on; < 0: none. */
static double start_us(int descriptors, int keep)
{
	double us = 0, t;
	int p[2], kept[4], i;
	pid_t pid;

	if (pipe(p))
		die("pipe");
	pid = fork_or_die();
	if (!pid) {
		struct rlimit lim;

		getrlimit(RLIMIT_NOFILE, &lim);
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
		for (i = 3; i < descriptors; i++)
			dup(0);
		for (i = 0; i < 4; i++)
			kept[i] = keep + i;
		if (async_teardown_keep(kept, keep < 0 ? 0 : 4))
			_exit(1);
		async_teardown_threads(1);
		async_teardown_start();
		async_teardown_stop();
		t = now_ms();
		if (async_teardown_start() < 0)
			_exit(1);
		us = (now_ms() - t) * 1e3;
		async_teardown_stop();
		if (fcntl(descriptors - 1, F_GETFD) < 0)
			us = 0;	/* not so many allowed */
		_exit(write(p[1], &us, sizeof(us)) < 0);
	}
	close(p[1]);
	if (read(p[0], &us, sizeof(us)) != sizeof(us))
		us = 0;
	close(p[0]);
	waitpid(pid, NULL, 0);
	return us;
}

/* In how many of so many runs did the process free its memory itself? */
static int synchronous(struct key k, int runs)
{
	double usual, cpu[64], ms[MOMENTS];
	int i, n = 0;

	for (i = 0; i < 64 && i < runs; i++)	/* nearly all are asynchronous */
		cpu[i] = run(&k, 5000, ms);
	usual = median(cpu, i);
	for (i = 0; i < runs; i++)
		n += run(&k, 5000, ms) < usual / 4;
	return n;
}

/* --- the plot --------------------------------------------------------------------------- */

/*
 * Three moments over memory; idle.  The sign would lie on the lock's line.  Both axes are logarithmic, or
 * what takes a fifth of a millisecond would not be seen beside what takes a second.  So
 * what several threads gain is hard to see there: below, the memory alone, linear.
 * On a ground of its own, for an image does not know whether its page is dark.
 */
static void plot(const char *file, int rounds, const char *machine)
{
	static const struct {
		enum variant variant;
		int helpers;
		enum moment moment;
		const char *label, *marker;
	} lines[] = {
		{ PLAIN, 0, BACK, "plain exit, all of it", "M-4,-4h8v8h-8z" },
		{ RAM, 2, BACK, "memory back", "M-5,4h10l-5,-9z" },
		{ RAM, 2, AT_LOCK, "mapped lock free", "M-5,0l5,-5l5,5l-5,5z" },
		{ RAM, 2, EXIT, "wait returns", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0" },
	};
	static const struct { const char *label; int variant, helpers, colour; } bars[] = {
		{ "plain exit", PLAIN, 0, 0 }, { "start alone", HELPER, 1, 1 },
		{ "ram, 1 thread", RAM, 1, 1 }, { "ram, 2 threads", RAM, 2, 1 },
	};
	const double w = 800, h = 588, left = 60, right = 252, top = 92, ph = 290, row = 22;
	const double pw = w - left - right, below = top + ph + 92, bar = 150;
	const int gib = largest < 4096 ? (int)largest / 1024 : 4;
	double x, y = 0, ymin = 1, ymax = 1, decade, decades, octaves = 0, octave, at = 0, ms = 0;
	const struct bench_case *c;
	FILE *f = fopen(file, "w");
	long mib;
	int i, q;

	if (!f)
		die(file);
	for (mib = 256; mib < largest; mib *= 2)
		octaves++;
	for (i = 0; i < 4; i++)
		for (mib = 256; mib <= largest; mib *= 2) {
			c = find(CASE(lines[i].variant, lines[i].helpers, (int)mib));
			while (c && ymin > .001 && ymin > quantile(c->ms[lines[i].moment], c->n, .25))
				ymin /= 10;
			if (c && ymax < quantile(c->ms[lines[i].moment], c->n, .75) * 1.3)
				ymax = quantile(c->ms[lines[i].moment], c->n, .75) * 1.3;
		}
	decades = log10(ymax / ymin);

	fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' role='img' "
		"aria-label='Milliseconds from SIGKILL until wait returns, a lock is free and memory "
		"is back, over memory'>\n<style>\n"
		"text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #59636e }\n"
		".t { font-size: 15px; font-weight: 600; fill: #1f2328 }\n"
		".g { stroke: #7a828c; stroke-opacity: .35 }\n"
		".l { fill: none; stroke-width: 2.5 } .q { stroke-width: 1.2 }\n"
		".c0 { stroke: #bc4c00 } .c1 { stroke: #8250df } .c2 { stroke: #1a7f37 } .c3 { stroke: #0969da }\n"
		".m0 { fill: #bc4c00 } .m1 { fill: #8250df } .m2 { fill: #1a7f37 } .m3 { fill: #0969da }\n"
		".b { font-weight: 600 }\n"
		"</style>\n<rect width='%g' height='%g' rx='8' fill='#fff'/>\n", w, h, w, h);
	fprintf(f, "<text class='t' x='%g' y='30'>Milliseconds from SIGKILL on (lower is better): "
		"<tspan class='m0'>a plain exit</tspan>,</text>\n<text class='t' x='%g' y='50'>and async_teardown.h "
		"with 2 threads: <tspan class='m3'>wait</tspan>, <tspan class='m2'>a lock</tspan>, "
		"<tspan class='m1'>memory</tspan></text>\n<text x='%g' y='71'>%s</text>\n",
		left, left, left, machine);
	for (i = 0; i <= (int)decades; i++) {
		y = top + ph - i / decades * ph;
		for (decade = ymin, q = 0; q < i; q++)
			decade *= 10;
		fprintf(f, "<line class='g' x1='%g' x2='%g' y1='%.1f' y2='%.1f'/>"
			"<text x='%g' y='%.1f' text-anchor='end'>%g</text>\n",
			left, left + pw, y, y, left - 8, y + 4, decade);
	}
	for (octave = 0, mib = 256; mib <= largest; mib *= 2, octave++)
		if (find(CASE(RAM, 2, (int)mib)))
			fprintf(f, "<text x='%.1f' y='%g' text-anchor='middle'>%ld %s</text>\n",
				left + 12 + octave / octaves * (pw - 24), top + ph + 20,
				mib < 1024 ? mib : mib / 1024, mib < 1024 ? "MiB" : "GiB");
	fprintf(f, "<text x='%g' y='%g' text-anchor='middle'>memory in 4 KiB pages; both axes are logarithmic"
		"</text>\n<text x='%g' y='%g' text-anchor='middle'>medians and quartiles of %d runs</text>\n",
		left + pw / 2, top + ph + 40, left + pw / 2, top + ph + 57, rounds);
	for (i = 0; i < 4; i++) {
		const int m = lines[i].moment;
		char points[512] = "";

		for (octave = 0, mib = 256; mib <= largest; mib *= 2, octave++) {
			c = find(CASE(lines[i].variant, lines[i].helpers, (int)mib));
			if (!c)
				continue;
#define Y(ms) (top + ph - log10((ms) / ymin) / decades * ph)
			x = left + 12 + octave / octaves * (pw - 24);
			ms = median_of(c, (enum moment)m);
			y = Y(ms);
			snprintf(points + strlen(points), sizeof(points) - strlen(points), "%.1f,%.1f ", x, y);
			fprintf(f, "<line class='q c%d' x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f'/>"
				"<path class='m%d' transform='translate(%.1f %.1f)' d='%s'/>\n", i, x, x,
				Y(quantile(c->ms[m], c->n, .25)), Y(quantile(c->ms[m], c->n, .75)),
				i, x, y, lines[i].marker);
#undef Y
		}
		at = y + 4 > at + 18 ? y + 4 : at + 18;
		fprintf(f, "<polyline class='l c%d' points='%s'/>\n"
			"<text class='b m%d' x='%.1f' y='%.1f'>%s: %.*f ms</text>\n", i, points,
			i, left + pw + 10, at, lines[i].label, ms < 1 ? 2 : ms < 10, ms);
	}
	fprintf(f, "<text class='t' x='%g' y='%g'>Memory is back, %d GiB in 4 KiB pages (linear)</text>\n",
		left, below, gib);
	for (i = 0, x = 0, y = below + 12; i < 4; i++) {
		c = find(CASE(bars[i].variant, bars[i].helpers, 1024 * gib));
		ms = median_of(c, BACK);
		x = x < ms ? ms : x;
	}
	for (i = 0; i < 4; i++) {
		ms = median_of(find(CASE(bars[i].variant, bars[i].helpers, 1024 * gib)), BACK);
		if (ms <= 0)
			continue;
		fprintf(f, "<text x='%g' y='%g' text-anchor='end'>%s</text><rect class='m%d' x='%g' y='%g' width='%.1f' "
			"height='%g'/><text class='b m%d' x='%.1f' y='%g'>%.0f ms</text>\n", left + bar - 40, y + 12,
			bars[i].label, bars[i].colour, left + bar - 30, y, ms / x * 480, row - 6, bars[i].colour,
			left + bar - 20 + ms / x * 480, y + 12, ms);
		y += row;
	}
	fprintf(f, "</svg>\n");
	fclose(f);
}

/* --- all of it --------------------------------------------------------------------------------- */

static const char usage[] = "usage: bench [-r ROUNDS] [-m MiB] [-o CSV] [-s SVG]\n"
	"       bench -p CSV [-s SVG]\n";

static volatile sig_atomic_t enough;

static void interrupt(int sig)
{
	(void)sig;
	enough = 1;
}

/* Returns how many rounds there were, for ^C ends it after one. */
static int measure(const char *csv, const char *machine, int rounds)
{
	int round, i, j, m, order[MAX_CASES];
	double ms[MOMENTS];
	struct bench_case *c;
	FILE *f = fopen(csv, "w");

	if (!f)
		die(csv);
	fprintf(f, "# %s\nvariant,helper_threads,mib,memory,threads,how,round,"
		"exit_ms,lock_ms,socket_ms,sign_ms,back_ms,freed_ms\n", machine);
	for (round = 0; round < rounds && !enough; round++) {
		for (i = 0; i < ncases; i++) {
			j = rand() % (i + 1);
			order[i] = order[j];
			order[j] = i;
		}
		for (i = 0; i < ncases; i++) {
			c = &cases[order[i]];
			if (isatty(2))
				fprintf(stderr, "\rround %d of %d, case %d of %d ", round + 1, rounds, i + 1, ncases);
			/* All is asleep, or busy, by then; and as cold for an empty process,
			 * made a moment ago, as for one that took seconds to fill. */
			run(&c->key, 100000, ms);
			fprintf(f, "%s,%d,%d,%s,%d,%d,%d", variant_name[c->key.variant], c->key.helpers,
				c->key.mib, memory_name[c->key.memory], c->key.idle + 1, c->key.how, round);
			for (m = 0; m < MOMENTS; m++)
				fprintf(f, ",%.3f", c->ms[m][c->n] = ms[m]);
			fputc('\n', f);
			c->n++;
		}
		fflush(f);
	}
	if (isatty(2))
		fprintf(stderr, "\r%60s\r", "");
	fclose(f);
	return round;
}

/* The index of a name. */
static int index_of(const char *const *names, int n, const char *name)
{
	int i;

	for (i = 0; i < n && strcmp(names[i], name); i++)
		;
	return i;
}

/* Takes the values from a file that measure has written; returns how many rounds. */
static int load(const char *csv, char *machine, size_t size)
{
	char line[256], variant[32], memory[16];
	double ms[MOMENTS] = { 0 };
	struct bench_case *c;
	int m, round, rounds = 0;
	struct key k;
	FILE *f = fopen(csv, "r");

	if (!f || !fgets(line, sizeof(line), f))
		die(csv);
	snprintf(machine, size, "%.*s", (int)strcspn(line + 2, "\n"), line + 2);
	while (fgets(line, sizeof(line), f)) {
		memset(&k, 0, sizeof(k));
		if (sscanf(line, "%31[^,],%d,%d,%15[^,],%d,%d,%d,%lf,%lf,%lf,%lf,%lf,%lf", variant, &k.helpers, &k.mib,
			   memory, &k.idle, &k.how, &round, ms, ms + 1, ms + 2, ms + 3, ms + 4, ms + 5) < 12)
			continue;
		k.idle--;
		k.variant = index_of(variant_name, VARIANTS, variant);
		k.memory = index_of(memory_name, MEMORIES, memory);
		if (k.variant == VARIANTS || k.memory == MEMORIES || k.how > UNMAPS)
			continue;
		c = add(k);
		largest = k.mib > largest ? k.mib : largest;
		for (m = 0; c->n < MAX_ROUNDS && m < MOMENTS; m++)
			c->ms[m][c->n] = ms[m];
		rounds = ++c->n > rounds ? c->n : rounds;
	}
	fclose(f);
	have_hugetlb = have_quota = 1;
	return rounds;
}

static void table(void)
{
	const struct bench_case *c;
	char text[64];
	int i, m;

	printf("\nms: median (quartiles)\n%-28s %7s %6s %-8s %7s %6s ", "", "helper", "MiB", "memory", "threads", "how");
	for (m = 0; m <= BACK; m++)
		printf("  %-*s", m < BACK ? 24 : 0, moment_name[m]);
	printf("\n");
	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		printf("%-28s %7d %6d %-8s %7d %6s ", variant_name[c->key.variant], c->key.helpers, c->key.mib,
			memory_name[c->key.memory], c->key.idle + 1, how_name[c->key.how]);
		for (m = 0; m <= BACK; m++) {
			snprintf(text, sizeof(text), "%.2f (%.2f - %.2f)", median_of(c, (enum moment)m),
				quantile(c->ms[m], c->n, .25), quantile(c->ms[m], c->n, .75));
			printf("  %-*s", m < BACK ? 24 : 0, text);
		}
		printf("\n");
	}
}

/* Those that are flat over memory: ms later than for an empty process without a helper. */
static void later_figures(void)
{
	static const struct { enum moment moment; const char *what; enum moment empty; } later[] = {
		{ AT_LOCK, "lock free", EXIT }, { AT_SIGN, "the sign", EXIT }, { AT_SOCKET, "socket free", AT_SOCKET },
	};
	const struct bench_case *empty = find(CASE(PLAIN, 0, 0)), *c;
	char text[128];
	int i, mib;

	section("Restart, ms later than an empty process's end");
	for (i = 0; i < 3; i++)
		for (mib = 1024; mib <= largest; mib *= 2) {
			c = find(CASE(RAM, 2, mib));
			if (!c || !median_of(c, later[i].moment))
				continue;
			snprintf(text, sizeof(text), "%s, %d GiB", later[i].what, mib / 1024);
			figure(text, median_of(c, later[i].moment) - median_of(empty, later[i].empty));
		}
}

/* Every ratio; called twice, first to add the cases that they need. */
static void figures(void)
{
	const struct key empty = CASE(PLAIN, 0, 0), plain = CASE(PLAIN, 0, 4096), ram = CASE(RAM, 2, 4096),
		leaves = CASE(PLAIN, 0, 1024, .how = LEAVES),
		quota = CASE(PLAIN, 0, 512, .how = QUOTA);

	section("Exit: until wait returns");
	ratio("4 GiB / an empty process", CASE(HELPER, 1, 4096), EXIT, empty, EXIT);
	ratio("4 GiB, ram, 2 threads / an empty process", ram, EXIT, empty, EXIT);
	ratio("the same, every CPU busy", CASE(RAM, 2, 4096, .how = BUSY), EXIT, CASE(PLAIN, 0, 0, .how = BUSY), EXIT);
	ratio("8 GiB / 1 GiB", CASE(HELPER, 1, 8192), EXIT, CASE(HELPER, 1, 1024), EXIT);
	ratio("4 GiB: plain / with the helper (how many times sooner)", plain, EXIT, CASE(HELPER, 1, 4096), EXIT);
	ratio("256 threads / 1", CASE(RAM, 256, 64, .memory = UNTOLD), EXIT,
		CASE(RAM, 1, 64, .memory = UNTOLD), EXIT);
	ratio("1 GiB in a memfd that the helper keeps / without helper", CASE(HELPER, 1, 1024, .memory = IN_FILE), EXIT,
		CASE(PLAIN, 0, 1024, .memory = IN_FILE), EXIT);
	ratio("two memfds of 512 MiB that it keeps, 2 threads / without helper",
		CASE(RAM, 2, 1024, .memory = IN_FILES), EXIT, CASE(PLAIN, 0, 1024, .memory = IN_FILES), EXIT);

	section("An orderly exit of 1 GiB, until wait returns / plain, with _exit");
	ratio("munmap of the RAM before that", CASE(PLAIN, 0, 1024, .how = UNMAPS), EXIT, leaves, EXIT);
	ratio("with ram, 2 threads", CASE(RAM, 2, 1024, .how = LEAVES), EXIT, leaves, EXIT);
	ratio("with ram, 2 threads, munmap of the RAM before that", CASE(RAM, 2, 1024, .how = UNMAPS), EXIT, leaves, EXIT);

	section("Restart: until what was mapped is free, and until the sign of that (2 threads)");
	ratio("lock free, 4 GiB / exit of a plain one", ram, AT_LOCK, plain, EXIT);
	ratio("the sign, 4 GiB / exit of a plain one", ram, AT_SIGN, plain, EXIT);
	ratio("socket free, 4 GiB / exit of a plain one", ram, AT_SOCKET, plain, EXIT);
	ratio("lock free, 256 MiB are not told, 256 threads / 1", CASE(RAM, 256, 64, .memory = UNTOLD), AT_LOCK,
		CASE(RAM, 1, 64, .memory = UNTOLD), AT_LOCK);
	if (!adding)
		later_figures();

	section("Memory back / plain");
	back("4 GiB, without ram", CASE(HELPER, 1, 4096));
	back("512 MiB, without ram, a VMM of 64 threads", CASE(HELPER, 1, 512, .idle = 63));
	back("512 MiB, without ram, without pidfd, a VMM of 64 threads", CASE(FALLBACK, 1, 512, .idle = 63));
	back("512 MiB, naive helper, a VMM of 64 threads", CASE(NAIVE, 0, 512, .idle = 63));
	back("512 MiB, 2 threads, a VMM of 64 threads", CASE(RAM, 2, 512, .idle = 63));
	back("512 MiB, without ram, every CPU busy", CASE(HELPER, 1, 512, .how = BUSY));
	back("512 MiB, 2 threads, every CPU busy", CASE(RAM, 2, 512, .how = BUSY));
	back("4 GiB, 1 thread", CASE(RAM, 1, 4096));
	back("4 GiB, 2 threads", ram);
	back("1 GiB, 8 threads", CASE(RAM, 8, 1024));
	back("1 GiB, 64 threads", CASE(RAM, 64, 1024));
	back("2 MiB pages, 4 GiB, 1 thread", CASE(RAM, 1, 4096, .memory = HUGE_PAGES));
	back("2 MiB pages, 4 GiB, 2 threads", CASE(RAM, 2, 4096, .memory = HUGE_PAGES));
	back("2 MiB pages, 4 GiB, 64 threads", CASE(RAM, 64, 4096, .memory = HUGE_PAGES));
	back("2 MiB pages, 4 GiB, 2 threads, every CPU busy", CASE(RAM, 2, 4096, .memory = HUGE_PAGES, .how = BUSY));
	back("shared (memfd), 1 GiB, 1 thread", CASE(RAM, 1, 1024, .memory = SHARED));
	back("shared (memfd), 1 GiB, 2 threads", CASE(RAM, 2, 1024, .memory = SHARED));
	back("shared (memfd), 1 GiB, 64 threads", CASE(RAM, 64, 1024, .memory = SHARED));
	/* A plain exit takes a millisecond or two, so this is what the helper costs. */
	back("hugetlb, 2 GiB, 1 thread", CASE(RAM, 1, HUGETLB_MIB, .memory = HUGETLB));
	back("hugetlb, 2 GiB, 2 threads", CASE(RAM, 2, HUGETLB_MIB, .memory = HUGETLB));
	back("hugetlb, 2 GiB, 64 threads", CASE(RAM, 64, HUGETLB_MIB, .memory = HUGETLB));
	ratio("two kept memfds of 512 MiB, 2 threads / 1 thread", CASE(RAM, 2, 1024, .memory = IN_FILES), BACK,
		CASE(RAM, 1, 1024, .memory = IN_FILES), BACK);

	section("Memory of 512 MiB freed, under a CPU quota of 5 % / plain");
	ratio("without ram", CASE(HELPER, 1, 512, .how = QUOTA), FREED, quota, BACK);
	ratio("1 thread", CASE(RAM, 1, 512, .how = QUOTA), FREED, quota, BACK);
	ratio("2 threads", CASE(RAM, 2, 512, .how = QUOTA), FREED, quota, BACK);
	ratio("2 threads, until the helper's end", CASE(RAM, 2, 512, .how = QUOTA), BACK, quota, BACK);
}

/* What is in no ratio: for the plot and the tables. */
static void more_cases(void)
{
	int variant, mib;

	for (mib = 0; mib <= largest; mib = !mib ? 256 : mib < largest && mib * 4 > largest ? (int)largest : mib * 4) {
		get(CASE(PLAIN, 0, mib));
		get(CASE(HELPER, 1, mib));
		get(CASE(RAM, 2, mib));
	}
	for (variant = PLAIN; variant <= NAIVE; variant++) {
		const int helpers = variant == PLAIN || variant == NAIVE ? 0 : variant == RAM ? 2 : 1;

		get(CASE(variant, helpers, 512, .idle = 3));
		get(CASE(variant, helpers, 512, .how = BUSY));
		if (variant <= RAM)
			get(CASE(variant, helpers, 1024, .memory = HUGE_PAGES));
		else
			get(CASE(variant, helpers, 1024));
	}
	get(CASE(RAM, 2, 8192));
	get(CASE(RAM, 2, 0, .how = BUSY));
	get(CASE(NAIVE, 0, 0));
	get(CASE(NAIVE, 0, 4096));
}

static void start_figures(int runs)
{
	static const struct { int descriptors, keep; } how[] = {
		{ 3, -1 }, { 10000, -1 }, { 10000, 3 }, { 10000, 9996 },
	};
	static double us[4][MAX_ROUNDS];
	double few;
	int i, j;

	for (i = 0; i < runs && i < MAX_ROUNDS; i++)
		for (j = 0; j < 4; j++)
			us[j][i] = start_us(how[j].descriptors, how[j].keep);
	few = median(us[0], i);
	printf("\nStart, with 3 descriptors: %.0f us; with 10000: %.0f us\n", few, median(us[1], i));
	figure("10000 descriptors / 3", median(us[1], i) / few);
	figure("10000, four of the first kept / 3", median(us[2], i) / few);
	figure("10000, the last four kept / 3", median(us[3], i) / few);
}

static void counts(int rounds)
{
	static const struct key how[] = { { HELPER, 1, 16, SMALL, 0, 0 }, { RAM, 2, 16, SMALL, 0, 0 }, { FALLBACK, 1, 16, SMALL, 0, 0 } };
	const struct bench_case *c;
	struct key k;
	int i, n, late = 0;

	printf("\nCounts, all of which should be 0:\n");
	for (i = 0; i < 6; i++) {
		k = how[i % 3];
		k.idle = i < 3 ? 3 : 63;
		printf("  synchronous teardowns in %d runs, %2d threads, %-28s %14d\n", 25 * rounds, k.idle + 1,
			variant_name[k.variant], synchronous(k, 25 * rounds));
	}
	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		if (c->key.variant == PLAIN || c->key.variant > FALLBACK)
			continue;
		k = c->key;
		k.variant = PLAIN;
		k.helpers = 0;
		for (n = 0; find(k) && n < c->n; n++)
			late += c->ms[BACK][n] > median_of(find(k), BACK) + 1000;
	}
	printf("  helpers still there a second after a plain exit's end %31d\n", late + stayed);
	printf("  signs at which the lock was not free %48d\n", too_early);
}

int main(int argc, char **argv)
{
	const char *csv = "bench.csv", *svg = "bench.svg", *saved = NULL;
	double stolen[2], total[2], spread, worst = 0;
	const struct bench_case *c;
	long room = free_mib(), mib;
	struct sigaction act;
	int rounds = 20, i, opt;
	struct utsname u;
	char machine[256];

	while ((opt = getopt(argc, argv, "r:m:o:p:s:")) != -1) {
		switch (opt) {
		case 'r': rounds = atoi(optarg); break;
		case 'm': largest = atol(optarg); break;
		case 'o': csv = optarg; break;
		case 'p': saved = optarg; break;
		case 's': svg = optarg; break;
		default: fputs(usage, stderr); return 2;
		}
	}
	if (optind < argc || rounds < 1 || rounds > MAX_ROUNDS || largest < 0) {
		fputs(usage, stderr);
		return 2;
	}
	if (saved) {
		rounds = load(saved, machine, sizeof(machine));
		table();
		plot(svg, rounds, machine);
		figures();
		return 0;
	}
	if (!largest)
		largest = room / 10 * 9;
	for (mib = 1024; mib * 2 <= largest; mib *= 2)
		;
	largest = mib;
	if (room >= 0 && largest > room / 10 * 9) {
		fprintf(stderr, "bench: needs %ld MiB of free memory, and a tenth more\n", largest);
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	srand(1);
	memset(&act, 0, sizeof(act));	/* no SA_RESTART: what waits is woken */
	act.sa_handler = on_alarm;
	sigaction(SIGALRM, &act, NULL);
	signal(SIGINT, interrupt);
	signal(SIGTERM, interrupt);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	supervisor = getpid();
	cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	parts = cpus < 64 ? cpus : 64;
	uname(&u);
	u.release[strcspn(u.release, "-")] = 0;	/* without the builder's suffix */
	snprintf(machine, sizeof(machine), "Linux %.64s, %.32s, %d CPUs, %ld MiB of memory",
		u.release, u.machine, cpus, meminfo_mib("MemTotal"));
	printf("%s\n", machine);
	if (largest < HUGETLB_MIB || largest + HUGETLB_MIB > room / 10 * 9 || !enlarge_pool(HUGETLB_MIB / 2))
		printf("no hugetlb: for want of root, or of memory\n");
	have_quota = group_make();
	if (!have_quota)
		printf("no CPU quota: no control group with cpu.cfs_quota_us or cpu.max can be made\n");
	else
		rmdir(group);

	adding = 1;
	more_cases();
	figures();
	adding = 0;

	cpu_times(&stolen[0], &total[0]);
	rounds = measure(csv, machine, rounds);
	cpu_times(&stolen[1], &total[1]);
	printf("%d rounds\n", rounds);
	table();
	plot(svg, rounds, machine);
	figures();
	restore_pool();
	start_figures(5 * rounds);
	counts(rounds);

	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		spread = (quantile(c->ms[BACK], c->n, .75) - quantile(c->ms[BACK], c->n, .25)) / median_of(c, BACK);
		if (c->key.variant == PLAIN && c->key.memory == SMALL && c->key.mib >= 512 && !c->key.how && spread > worst)
			worst = spread;
	}
	if (least_huge < 95)
		printf("\nWarning: where memory was to be in 2 MiB pages, at worst %d %% of it was\n", least_huge);
	if (worst > .25)
		printf("\nWarning: a noisy machine: quartiles of a plain exit up to %.0f %% apart\n", worst * 100);
	if (total[1] > total[0] && (stolen[1] - stolen[0]) / (total[1] - total[0]) > .02)
		printf("\nWarning: a noisy machine: %.0f %% of the CPU time was stolen\n",
			100 * (stolen[1] - stolen[0]) / (total[1] - total[0]));
	return 0;
}
