/*
 * bench - every figure, side by side
 *
 *	bench [-r ROUNDS] [-m MiB] [-o CSV] [-s SVG]
 *
 * In each round every case runs once, in random order, so that what disturbs
 * the machine disturbs them all.  A case is a process that fills memory, holds a
 * lock by a mapping, has an io_uring poll a socket (see measure.h), and is killed by
 * its supervisor, which is the subreaper.  From the kill
 *	exit	to the return of waitpid for the process
 *	lock	until the lock is free
 *	socket	until the other end of the socket sees the end of file; 0: no io_uring
 *	back	to the end of the last descendant
 * Medians and quartiles go to the terminal, all values to CSV, and a plot over
 * memory to SVG.  -m: the largest process; default: from what is free.
 */
#define _GNU_SOURCE
#define ASYNC_TEARDOWN_IMPLEMENTATION

/*
 * The header is in here twice.  This file is compiled once as it is, for a helper
 * of one thread; and once with ASYNC_TEARDOWN_THREADS defined, and then is nothing
 * but a second copy of the header, under the names of these functions.
 */
int start_threads(void);
int ram_threads(void *start, unsigned long size);
extern const int helper_threads;

#ifdef ASYNC_TEARDOWN_THREADS

#define ASYNC_TEARDOWN_STATIC
#include "../async_teardown.h"

const int helper_threads = ASYNC_TEARDOWN_THREADS;

int start_threads(void)
{
	return async_teardown_start();
}

int ram_threads(void *start, unsigned long size)
{
	return async_teardown_ram(start, size);
}

#else

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "../async_teardown.h"
#include "measure.h"

enum variant { PLAIN, HELPER, RAM, RAM_THREADS, FALLBACK, NAIVE, UNMAP, VARIANTS };
static char with_threads[64];
static const char *const variant_name[VARIANTS] = {
	"plain exit", "async_teardown", "async_teardown ram", with_threads,
	"async_teardown without pidfd", "naive helper", "parallel munmap",
};

/* Where the memory is; the last one is not mapped, and the helper keeps it. */
enum memory { SMALL, BIG, IN_FILE };
static const char *const memory_name[] = { "4K", "huge", "memfd" };

enum { MAX_CASES = 64, MAX_ROUNDS = 1000 };

enum moment { EXIT, AT_LOCK, AT_SOCKET, BACK, MOMENTS };
static const char *const moment_name[] = { "exit", "lock", "socket", "back" };

static struct bench_case {
	long mib;
	enum variant variant;
	enum memory memory;
	int threads, busy;
	int n;
	double ms[MOMENTS][MAX_ROUNDS];
} cases[MAX_CASES];
static int ncases, stayed, have_ring;

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

/* --- unmapping in parallel, on SIGTERM ------------------------------------ */

static char *block;
static size_t block_size;
static int unmappers;

static void *unmap_part(void *arg)
{
	size_t part = block_size / (size_t)unmappers & ~(size_t)0x1fffff;
	size_t i = (size_t)arg;
	size_t end = (int)i == unmappers - 1 ? block_size : (i + 1) * part;

	madvise(block + i * part, end - i * part, MADV_DONTNEED);
	return NULL;
}

static void unmap_and_exit(void)
{
	pthread_t t[64];
	int i;

	for (i = 0; i < unmappers; i++)
		pthread_create(&t[i], NULL, unmap_part, (void *)(size_t)i);
	for (i = 0; i < unmappers; i++)
		pthread_join(t[i], NULL);
	_exit(0);
}

/* --- the process with the memory ------------------------------------------- */

static void refuse_pidfd(void)
{
	static const struct atd_insn insns[] = {
		{ 0x20, 0, 0, 0 }, { 0x15, 0, 1, ATD_NR_PIDFD_OPEN },
		{ 0x06, 0, 0, 0x50000 | ENOSYS }, { 0x06, 0, 0, 0x7fff0000 },
	};
	static const struct atd_prog prog = { 4, insns };

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

static void fill_block(size_t size, enum memory memory)
{
	size_t i;

	block_size = size ? size : 4096;
	block = mmap(NULL, block_size, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (block == MAP_FAILED)
		die("mmap");
	if (memory == BIG)
		madvise(block, block_size, MADV_HUGEPAGE);
	for (i = 0; i < block_size; i += 4096)
		block[i] = 1;
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

static void process(const struct bench_case *c, const struct resource *lock, const struct resource *sock, int report)
{
	pthread_attr_t attr;
	pthread_t t;
	sigset_t term;
	int helper = 0, fd, sig;

	prctl(PR_SET_THP_DISABLE, c->memory != BIG, 0, 0, 0);
	if (resource_hold(lock) || (have_ring && resource_hold(sock)))
		die("lock, or io_uring");
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (c->variant == UNMAP)
		sigprocmask(SIG_BLOCK, &term, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 131072);
	for (sig = 1; sig < c->threads; sig++)
		if (pthread_create(&t, &attr, idle_thread, NULL))
			die("pthread_create");
	if (c->memory == IN_FILE) {
		fd = fill_file((size_t)c->mib << 20);
		if (c->variant == HELPER)
			async_teardown_keep(&fd, 1);
	} else {
		fill_block((size_t)c->mib << 20, c->memory);
	}
	if (c->variant == FALLBACK)
		refuse_pidfd();
	if (c->variant == RAM)
		async_teardown_ram(block, block_size);
	if (c->variant == RAM_THREADS) {
		ram_threads(block, block_size);
		helper = start_threads();
	} else if (c->variant == HELPER || c->variant == RAM || c->variant == FALLBACK)
		helper = async_teardown_start();
	else if (c->variant == NAIVE)
		helper = naive_start();
	if (write(report, &helper, sizeof(helper)) != sizeof(helper))
		_exit(1);
	for (;;) {
		if (c->variant == UNMAP && sigwait(&term, &sig) == 0)
			unmap_and_exit();
		pause();
	}
}

static void on_alarm(int sig) { (void)sig; }

/*
 * Waits for the helper; its CPU time in ms, < 0 if it stays for too long.  Asleep
 * until then, as for a plain exit: polling would take the CPU from the helper.
 */
static double reap_helper(pid_t helper, unsigned seconds)
{
	struct sigaction act;
	struct rusage use;
	pid_t pid;

	memset(&act, 0, sizeof(act));
	act.sa_handler = on_alarm;	/* no SA_RESTART: wait4 fails then */
	sigaction(SIGALRM, &act, NULL);
	alarm(seconds);
	pid = wait4(helper, NULL, __WALL, &use);
	alarm(0);
	if (pid != helper)
		return -1;
	return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1e3 +
		(double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e3;
}

static int cpus;
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
static double run(const struct bench_case *c, unsigned settle_us, double ms[MOMENTS])
{
	struct resource lock, sock;
	int p[2], helper;
	double t0, cpu = 0;
	pid_t pid;

	if (pipe(p))
		die("pipe");
	if (resource_make(&lock, LOCK))
		die("/tmp");
	have_ring = resource_make(&sock, SOCKET) == 0;
	pid = fork_or_die();
	if (!pid)
		process(c, &lock, &sock, p[1]);
	close(p[1]);
	if (read(p[0], &helper, sizeof(helper)) != sizeof(helper) || helper < 0) {
		fprintf(stderr, "bench: a process of %ld MiB did not come up\n", c->mib);
		exit(1);
	}
	close(p[0]);
	if (resource_watch(&lock) || (have_ring && resource_watch(&sock)))
		die("pthread_create");
	if (c->busy)
		spin(1);
	usleep(settle_us);

	t0 = now_ms();
	kill(pid, c->variant == UNMAP ? SIGTERM : SIGKILL);
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
	ms[EXIT] = ms[BACK] = now_ms() - t0;
	if (helper) {
		cpu = reap_helper(helper, 60);
		ms[BACK] = now_ms() - t0;
		if (cpu < 0) {	/* the worst that can happen */
			stayed++;
			kill(helper, SIGKILL);
			cpu = reap_helper(helper, 10);
		}
	}
	ms[AT_LOCK] = resource_wait(&lock) - t0;
	ms[AT_SOCKET] = have_ring ? resource_wait(&sock) - t0 : 0;
	if (c->busy)
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

static struct bench_case *find(long mib, enum variant v, int threads, enum memory memory, int busy)
{
	int i;

	for (i = 0; i < ncases; i++)
		if (cases[i].mib == mib && cases[i].variant == v && cases[i].threads == threads &&
		    cases[i].memory == memory && cases[i].busy == busy)
			return &cases[i];
	return NULL;
}

static void add(long mib, enum variant v, int threads, enum memory memory, int busy)
{
	struct bench_case *c = &cases[ncases];

	if (find(mib, v, threads, memory, busy))
		return;
	if (ncases == MAX_CASES)
		abort();
	c->mib = mib;
	c->variant = v;
	c->threads = threads;
	c->memory = memory;
	c->busy = busy;
	ncases++;
}

static double median_of(const struct bench_case *c, enum moment m)
{
	return c ? median(c->ms[m], c->n) : 0;
}

static double exit_of(const struct bench_case *c) { return median_of(c, EXIT); }
static double back_of(const struct bench_case *c) { return median_of(c, BACK); }

static void figure(const char *what, double value, double goal)
{
	printf("  %-76s %7.*f", what, value < .1 ? 4 : 2, value);
	if (goal > 0)
		printf("   %s %.2f", value <= goal ? "goal" : "MISSED", goal);
	printf("\n");
}

/* goal: at most, or 0 for none */
static void ratio(const char *what, double a, double b, double goal)
{
	if (a > 0 && b > 0)
		figure(what, a / b, goal);
}

static void back_ratio(const char *what, long mib, enum variant v, int threads, int busy, double goal)
{
	char text[128];

	snprintf(text, sizeof(text), "memory back: %s, %s / plain", what, variant_name[v]);
	ratio(text, back_of(find(mib, v, threads, SMALL, busy)),
		back_of(find(mib, PLAIN, threads, SMALL, busy)), goal);
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
		async_teardown_keep(kept, keep < 0 ? 0 : 4);
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

/* Of all threads. */
static long switches(pid_t pid)
{
	char path[300], line[128];
	struct dirent *d;
	long n, sum = 0;
	DIR *dir;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%.20s/status", pid, d->d_name);
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1 ||
			    sscanf(line, "nonvoluntary_ctxt_switches: %ld", &n) == 1)
				sum += n;
		if (f)
			fclose(f);
	}
	if (dir)
		closedir(dir);
	return sum;
}

static long wakeups(int (*start)(void), int seconds)
{
	int p[2], helper;
	long before, n;
	pid_t pid;

	if (pipe(p))
		die("pipe");
	pid = fork_or_die();
	if (!pid) {
		helper = start();
		_exit(write(p[1], &helper, sizeof(helper)) < 0 || pause() < 0);
	}
	close(p[1]);
	if (read(p[0], &helper, sizeof(helper)) != sizeof(helper) || helper < 0)
		die("start");
	close(p[0]);
	usleep(100000);
	before = switches(helper);
	sleep((unsigned)seconds);
	n = switches(helper) - before;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	reap_helper(helper, 10);
	return n;
}

/* In how many of so many runs did the process free its memory itself? */
static int synchronous(enum variant v, int threads, int runs)
{
	static struct bench_case c;
	double usual, cpu[64], ms[MOMENTS];
	int i, n = 0;

	c.mib = 16;
	c.variant = v;
	c.threads = threads;
	for (i = 0; i < 64 && i < runs; i++)	/* nearly all are asynchronous */
		cpu[i] = run(&c, 5000, ms);
	usual = median(cpu, i);
	for (i = 0; i < runs; i++)
		n += run(&c, 5000, ms) < usual / 4;
	return n;
}

/* --- the plot --------------------------------------------------------------------------- */

/*
 * All three moments over memory; one thread, idle.  Both axes are logarithmic, or
 * what takes a fifth of a millisecond would not be seen beside what takes a second.
 * The colours are legible on white and on black, for an image need not know which
 * its page is.
 */
static void plot(const char *file, long largest, int rounds, const char *machine)
{
	static const struct {
		enum variant variant;
		enum moment moment;
		const char *label, *marker;
	} lines[] = {
		{ PLAIN, BACK, "all of it", "M-4,-4h8v8h-8z" },
		{ RAM_THREADS, BACK, "memory back", "M-5,4h10l-5,-9z" },
		{ RAM_THREADS, AT_LOCK, "mapped lock free", "M-5,0l5,-5l5,5l-5,5z" },
		{ RAM_THREADS, EXIT, "wait returns", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0" },
	};
	const double w = 760, h = 440, left = 60, right = 232, top = 82, bottom = 66;
	const double pw = w - left - right, ph = h - top - bottom;
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
			c = find(mib, lines[i].variant, 1, SMALL, 0);
			while (c && ymin > .001 && ymin > quantile(c->ms[lines[i].moment], c->n, .25))
				ymin /= 10;
			if (c && ymax < quantile(c->ms[lines[i].moment], c->n, .75) * 1.3)
				ymax = quantile(c->ms[lines[i].moment], c->n, .75) * 1.3;
		}
	decades = log10(ymax / ymin);

	fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' role='img' "
		"aria-label='Milliseconds from SIGKILL until wait returns, a lock is free and memory "
		"is back, over memory'>\n<style>\n"
		"text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #7a828c }\n"
		".t { font-size: 15px; font-weight: 600 }\n"
		".g { stroke: #7a828c; stroke-opacity: .35 }\n"
		".l { fill: none; stroke-width: 2.5 } .q { stroke-width: 1.2 }\n"
		".c0 { stroke: #d4620a } .c1 { stroke: #a05fd6 } .c2 { stroke: #1a9457 } .c3 { stroke: #2f81f7 }\n"
		".m0 { fill: #d4620a } .m1 { fill: #a05fd6 } .m2 { fill: #1a9457 } .m3 { fill: #2f81f7 }\n"
		".b { font-weight: 600 }\n"
		"</style>\n", w, h);
	fprintf(f, "<text class='t' x='%g' y='22'>Milliseconds from SIGKILL on (lower is better): "
		"<tspan class='m0'>a plain exit</tspan>,</text>\n<text class='t' x='%g' y='42'>and async_teardown.h "
		"with %d threads: <tspan class='m3'>wait</tspan>, <tspan class='m2'>a lock</tspan>, "
		"<tspan class='m1'>memory</tspan></text>\n<text x='%g' y='62'>%s</text>\n",
		left, left, helper_threads, left, machine);
	for (i = 0; i <= (int)decades; i++) {
		y = top + ph - i / decades * ph;
		for (decade = ymin, q = 0; q < i; q++)
			decade *= 10;
		fprintf(f, "<line class='g' x1='%g' x2='%g' y1='%.1f' y2='%.1f'/>"
			"<text x='%g' y='%.1f' text-anchor='end'>%g</text>\n",
			left, left + pw, y, y, left - 8, y + 4, decade);
	}
	for (octave = 0, mib = 256; mib <= largest; mib *= 2, octave++)
		if (find(mib, RAM_THREADS, 1, SMALL, 0))
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
			c = find(mib, lines[i].variant, 1, SMALL, 0);
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
	fprintf(f, "</svg>\n");
	fclose(f);
}

/* --- all of it --------------------------------------------------------------------------------- */

static const char usage[] = "usage: bench [-r ROUNDS] [-m MiB] [-o CSV] [-s SVG]\n";

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
	fprintf(f, "# %s\nvariant,mib,memory,threads,busy,round,exit_ms,lock_ms,socket_ms,back_ms\n", machine);
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
			run(c, 100000, ms);
			fprintf(f, "%s,%ld,%s,%d,%d,%d", variant_name[c->variant], c->mib, memory_name[c->memory],
				c->threads, c->busy, round);
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

static void table(void)
{
	const struct bench_case *c;
	char text[64];
	int i, m;

	printf("\nms: median (quartiles)\n%-29s %6s %7s %6s %4s ", "", "MiB", "threads", "memory", "CPUs");
	for (m = 0; m < MOMENTS; m++)
		printf("  %-*s", m < BACK ? 24 : 0, moment_name[m]);
	printf("\n");
	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		printf("%-29s %6ld %7d %6s %4s ", variant_name[c->variant], c->mib, c->threads,
			memory_name[c->memory], c->busy ? "busy" : "idle");
		for (m = 0; m < MOMENTS; m++) {
			snprintf(text, sizeof(text), "%.2f (%.2f - %.2f)", median_of(c, (enum moment)m),
				quantile(c->ms[m], c->n, .25), quantile(c->ms[m], c->n, .75));
			printf("  %-*s", m < BACK ? 24 : 0, text);
		}
		printf("\n");
	}
}

/* The goals are for 4 GiB and two threads, and with less there are none. */
static void restart_figures(long big, long largest)
{
	const struct bench_case *empty = find(0, PLAIN, 1, SMALL, 0);
	const struct bench_case *c = find(big, RAM_THREADS, 1, SMALL, 0);
	const struct bench_case *plain = find(big, PLAIN, 1, SMALL, 0);
	const int full = big == 4096, goals = full && helper_threads == 2;
	char text[128];
	long mib;

	printf("\nWith the RAM given, %d threads; %ld GiB:\n", helper_threads, big / 1024);
	ratio("exit / an empty process", exit_of(c), exit_of(empty), goals * 1.2);
	ratio("exit / an empty process, every CPU busy", exit_of(find(big, RAM_THREADS, 1, SMALL, 1)),
		exit_of(find(0, PLAIN, 1, SMALL, 1)), goals * 1.2);
	ratio("lock free / exit of a plain one", median_of(c, AT_LOCK), exit_of(plain), full * .02);
	ratio("socket free / exit of a plain one", median_of(c, AT_SOCKET), exit_of(plain), 0);
	for (mib = 1024; mib <= largest; mib *= 2) {
		c = find(mib, RAM_THREADS, 1, SMALL, 0);
		if (!c)
			continue;
		snprintf(text, sizeof(text), "lock free, %ld GiB: ms later than an empty process ends", mib / 1024);
		figure(text, median_of(c, AT_LOCK) - exit_of(empty), 3);
		snprintf(text, sizeof(text), "socket free, %ld GiB: ms later than an empty process's", mib / 1024);
		if (have_ring)
			figure(text, median_of(c, AT_SOCKET) - median_of(empty, AT_SOCKET), 3);
	}
	c = find(big, RAM_THREADS, 1, SMALL, 0);
	ratio("memory back / plain", back_of(c), back_of(plain), goals * .6);
	ratio("memory back, 1 thread / plain", back_of(find(big, RAM, 1, SMALL, 0)), back_of(plain), 0);
	ratio("exit: 1 GiB in a memfd that the helper keeps / without helper",
		exit_of(find(1024, HELPER, 1, IN_FILE, 0)), exit_of(find(1024, PLAIN, 1, IN_FILE, 0)), .05);
}

int main(int argc, char **argv)
{
	static double few[MAX_ROUNDS], many[MAX_ROUNDS], low[MAX_ROUNDS], high[MAX_ROUNDS];
	const char *csv = "bench.csv", *svg = "bench.svg";
	double stolen[2], total[2], spread, worst = 0;
	int rounds = 20, i, n, opt, late = 0;
	struct bench_case *c, *p;
	long largest = 0, room = free_mib(), big, mib;
	struct utsname u;
	char machine[256];

	while ((opt = getopt(argc, argv, "r:m:o:s:")) != -1) {
		switch (opt) {
		case 'r': rounds = atoi(optarg); break;
		case 'm': largest = atol(optarg); break;
		case 'o': csv = optarg; break;
		case 's': svg = optarg; break;
		default: fputs(usage, stderr); return 2;
		}
	}
	if (optind < argc || rounds < 1 || rounds > MAX_ROUNDS || largest < 0) {
		fputs(usage, stderr);
		return 2;
	}
	if (!largest)
		largest = room / 10 * 9;
	for (mib = 1024; mib * 2 <= largest; mib *= 2)
		;
	largest = mib;
	big = largest < 4096 ? largest : 4096;
	if (room >= 0 && largest > room / 10 * 9) {
		fprintf(stderr, "bench: needs %ld MiB of free memory, and a tenth more\n", largest);
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	srand(1);
	signal(SIGINT, interrupt);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	unmappers = cpus < 64 ? cpus : 64;
	snprintf(with_threads, sizeof(with_threads), "async_teardown ram %d threads", helper_threads);
	uname(&u);
	u.release[strcspn(u.release, "-")] = 0;	/* without the builder's suffix */
	snprintf(machine, sizeof(machine), "Linux %.64s, %.32s, %d CPUs, %ld MiB of memory",
		u.release, u.machine, cpus, meminfo_mib("MemTotal"));
	printf("%s\n", machine);

	for (mib = 0; mib <= largest; mib = !mib ? 256 : mib < largest && mib * 4 > largest ? largest : mib * 4) {
		add(mib, PLAIN, 1, SMALL, 0);
		add(mib, HELPER, 1, SMALL, 0);
		add(mib, RAM_THREADS, 1, SMALL, 0);
	}
	if (largest >= 8192) {
		add(8192, HELPER, 1, SMALL, 0);
		add(8192, RAM_THREADS, 1, SMALL, 0);
	}
	add(big, RAM, 1, SMALL, 0);
	add(0, PLAIN, 1, SMALL, 1);
	add(0, RAM_THREADS, 1, SMALL, 1);
	add(big, RAM_THREADS, 1, SMALL, 1);
	add(1024, PLAIN, 1, IN_FILE, 0);
	add(1024, HELPER, 1, IN_FILE, 0);
	add(0, NAIVE, 1, SMALL, 0);
	add(big, NAIVE, 1, SMALL, 0);
	add(1024, FALLBACK, 1, SMALL, 0);
	add(1024, NAIVE, 1, SMALL, 0);
	add(1024, UNMAP, 1, SMALL, 0);
	add(1024, PLAIN, 1, BIG, 0);
	add(1024, HELPER, 1, BIG, 0);
	add(1024, RAM_THREADS, 1, BIG, 0);
	for (i = 4; i <= 64; i *= 16)
		for (n = PLAIN; n <= NAIVE; n++)
			if (n != RAM)
				add(512, (enum variant)n, i, SMALL, 0);
	for (n = PLAIN; n <= NAIVE; n++)
		if (n != RAM)
			add(512, (enum variant)n, 1, SMALL, 1);

	cpu_times(&stolen[0], &total[0]);
	rounds = measure(csv, machine, rounds);
	cpu_times(&stolen[1], &total[1]);
	printf("%d rounds\n", rounds);
	table();
	plot(svg, largest, rounds, machine);

	printf("\nRatios of medians:\n");
	p = find(0, PLAIN, 1, SMALL, 0);
	ratio("exit: 4 GiB with the helper / an empty process",
		exit_of(find(4096, HELPER, 1, SMALL, 0)), exit_of(p), 1.5);
	ratio("exit: 8 GiB / 1 GiB, with the helper",
		exit_of(find(8192, HELPER, 1, SMALL, 0)), exit_of(find(1024, HELPER, 1, SMALL, 0)), 1.2);
	ratio("exit: 4 GiB, plain / with the helper (how many times sooner)",
		exit_of(find(4096, PLAIN, 1, SMALL, 0)), exit_of(find(4096, HELPER, 1, SMALL, 0)), 0);
	back_ratio("4 GiB, 1 thread", 4096, HELPER, 1, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, HELPER, 64, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, RAM_THREADS, 64, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, FALLBACK, 64, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, NAIVE, 64, 0, 0);
	back_ratio("512 MiB, every CPU busy", 512, HELPER, 1, 1, 1.25);
	back_ratio("512 MiB, every CPU busy", 512, RAM_THREADS, 1, 1, 1.25);
	restart_figures(big, largest);

	for (i = 0; i < 5 * rounds && i < MAX_ROUNDS; i++) {
		few[i] = start_us(3, -1);
		many[i] = start_us(10000, -1);
		low[i] = start_us(10000, 3);
		high[i] = start_us(10000, 9996);
	}
	printf("\nstart, with 3 descriptors: %.0f us; with 10000: %.0f us\n", median(few, i), median(many, i));
	ratio("10000 descriptors / 3", median(many, i), median(few, i), 1.2);
	ratio("10000, four of the first kept / 3", median(low, i), median(few, i), 1.2);
	ratio("10000, the last four kept / 3", median(high, i), median(few, i), 0);

	printf("\nCounts, all of which should be 0:\n");
	for (i = 4; i <= 64; i *= 16)
		for (n = HELPER; n <= FALLBACK; n++)
			if (n != RAM)
				printf("  synchronous teardowns in %d runs, %2d threads, %-28s %14d\n", 25 * rounds, i,
				variant_name[n], synchronous((enum variant)n, i, 25 * rounds));
	printf("  wake-ups of an idle helper in 10 s %50ld\n", wakeups(async_teardown_start, 10));
	printf("  the same with %d threads %60ld\n", helper_threads, wakeups(start_threads, 10));
	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		if (c->variant == PLAIN || c->variant > FALLBACK)
			continue;
		p = find(c->mib, PLAIN, c->threads, c->memory, c->busy);
		for (n = 0; p && n < c->n; n++)
			late += c->ms[BACK][n] > back_of(p) + 1000;
	}
	printf("  helpers still there a second after a plain exit's end %31d\n", late + stayed);

	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		spread = (quantile(c->ms[BACK], c->n, .75) - quantile(c->ms[BACK], c->n, .25)) / back_of(c);
		if (c->variant == PLAIN && c->mib >= 512 && !c->busy && spread > worst)
			worst = spread;
	}
	if (worst > .25)
		printf("\nWarning: a noisy machine: quartiles of a plain exit up to %.0f %% apart\n", worst * 100);
	if (total[1] > total[0] && (stolen[1] - stolen[0]) / (total[1] - total[0]) > .02)
		printf("\nWarning: a noisy machine: %.0f %% of the CPU time was stolen\n",
			100 * (stolen[1] - stolen[0]) / (total[1] - total[0]));
	return 0;
}

#endif
