/*
 * bench - every figure, side by side
 *
 *	bench [-r ROUNDS] [-m MiB] [-o CSV] [-s SVG]
 *
 * In each round every case runs once, in random order, so that what disturbs
 * the machine disturbs them all.  A case is a process that fills memory and is
 * killed by its supervisor, which is the subreaper:
 *	exit	from the kill to the return of waitpid for the process
 *	back	from the kill to the end of its last descendant
 * Medians and quartiles go to the terminal, all values to CSV, and a plot of
 * exit over memory to SVG.  -m: the largest process; default: from what is free.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#include "../async_teardown.h"

enum variant { PLAIN, HELPER, FALLBACK, NAIVE, UNMAP, VARIANTS };
static const char *const variant_name[VARIANTS] = {
	"plain exit", "async_teardown", "async_teardown without pidfd", "naive helper", "parallel munmap",
};

enum { MAX_CASES = 64, MAX_ROUNDS = 1000 };

static struct bench_case {
	long mib;
	enum variant variant;
	int threads, huge, busy;
	int n;
	double exit[MAX_ROUNDS], back[MAX_ROUNDS];	/* ms */
} cases[MAX_CASES];
static int ncases, stayed;

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

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

static void process(const struct bench_case *c, int report)
{
	pthread_attr_t attr;
	pthread_t t;
	sigset_t term;
	size_t i;
	int helper = 0, sig;

	prctl(PR_SET_THP_DISABLE, !c->huge, 0, 0, 0);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (c->variant == UNMAP)
		sigprocmask(SIG_BLOCK, &term, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 131072);
	for (sig = 1; sig < c->threads; sig++)
		if (pthread_create(&t, &attr, idle_thread, NULL))
			die("pthread_create");
	block_size = (size_t)c->mib << 20;
	if (c->mib) {
		block = mmap(NULL, block_size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (block == MAP_FAILED)
			die("mmap");
		if (c->huge)
			madvise(block, block_size, MADV_HUGEPAGE);
		for (i = 0; i < block_size; i += 4096)
			block[i] = 1;
	}
	if (c->variant == FALLBACK)
		refuse_pidfd();
	if (c->variant == HELPER || c->variant == FALLBACK)
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
static double run(const struct bench_case *c, unsigned settle_us, double *exit_ms, double *back_ms)
{
	int p[2], helper;
	double t0, cpu = 0;
	pid_t pid;

	if (pipe(p))
		die("pipe");
	pid = fork_or_die();
	if (!pid)
		process(c, p[1]);
	close(p[1]);
	if (read(p[0], &helper, sizeof(helper)) != sizeof(helper) || helper < 0) {
		fprintf(stderr, "bench: a process of %ld MiB did not come up\n", c->mib);
		exit(1);
	}
	close(p[0]);
	if (c->busy)
		spin(1);
	usleep(settle_us);

	t0 = now_ms();
	kill(pid, c->variant == UNMAP ? SIGTERM : SIGKILL);
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
	*exit_ms = *back_ms = now_ms() - t0;
	if (helper) {
		cpu = reap_helper(helper, 60);
		*back_ms = now_ms() - t0;
		if (cpu < 0) {	/* the worst that can happen */
			stayed++;
			kill(helper, SIGKILL);
			cpu = reap_helper(helper, 10);
		}
	}
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

static struct bench_case *find(long mib, enum variant v, int threads, int huge, int busy)
{
	int i;

	for (i = 0; i < ncases; i++)
		if (cases[i].mib == mib && cases[i].variant == v && cases[i].threads == threads &&
		    cases[i].huge == huge && cases[i].busy == busy)
			return &cases[i];
	return NULL;
}

static void add(long mib, enum variant v, int threads, int huge, int busy)
{
	struct bench_case *c = &cases[ncases];

	if (ncases == MAX_CASES || find(mib, v, threads, huge, busy))
		return;
	c->mib = mib;
	c->variant = v;
	c->threads = threads;
	c->huge = huge;
	c->busy = busy;
	ncases++;
}

static double exit_of(const struct bench_case *c) { return c ? median(c->exit, c->n) : 0; }
static double back_of(const struct bench_case *c) { return c ? median(c->back, c->n) : 0; }

/* goal: at most, or 0 for none */
static void ratio(const char *what, double a, double b, double goal)
{
	if (a <= 0 || b <= 0)
		return;
	printf("  %-70s %7.2f", what, a / b);
	if (goal > 0)
		printf("   %s %.2f", a / b <= goal ? "goal" : "MISSED", goal);
	printf("\n");
}

static void back_ratio(const char *what, long mib, enum variant v, int threads, int busy, double goal)
{
	char text[128];

	snprintf(text, sizeof(text), "memory back: %s, %s / plain", what, variant_name[v]);
	ratio(text, back_of(find(mib, v, threads, 0, busy)), back_of(find(mib, PLAIN, threads, 0, busy)), goal);
}

/* --- the machine ----------------------------------------------------------------- */

static long meminfo_mib(const char *key)
{
	char line[128], format[64];
	long kib = 0;
	FILE *f = fopen("/proc/meminfo", "r");

	snprintf(format, sizeof(format), "%s: %%ld", key);
	while (f && fgets(line, sizeof(line), f) && sscanf(line, format, &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib / 1024;
}

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

/* How long start takes, in us, in a process with so many descriptors. */
static double start_us(int descriptors)
{
	double us = 0, t;
	int p[2], i;
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

static long switches(pid_t pid)
{
	char path[64], line[128];
	long n, sum = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (!(f = fopen(path, "r")))
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1 ||
		    sscanf(line, "nonvoluntary_ctxt_switches: %ld", &n) == 1)
			sum += n;
	fclose(f);
	return sum;
}

static long wakeups(int seconds)
{
	int p[2], helper;
	long before, n;
	pid_t pid;

	if (pipe(p))
		die("pipe");
	pid = fork_or_die();
	if (!pid) {
		helper = async_teardown_start();
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
	double unused, cpu[64];
	int i, n = 0;

	c.mib = 16;
	c.variant = v;
	c.threads = threads;
	for (i = 0; i < 64 && i < runs; i++)	/* nearly all are asynchronous */
		cpu[i] = run(&c, 5000, &unused, &unused);
	unused = median(cpu, i);
	for (i = 0; i < runs; i++)
		n += run(&c, 5000, &cpu[0], &cpu[1]) < unused / 4;
	return n;
}

/* --- the plot --------------------------------------------------------------------------- */

/*
 * From the results as they stand in the CSV: exit over memory, one thread, idle.
 * The colours are legible on white and on black, for an image need not know which
 * its page is.
 */
static void plot(const char *file, const char *csv, long largest, const char *machine)
{
	static const int steps[] = { 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000 };
	static struct bench_case points[2][16];
	const double w = 720, h = 360, left = 64, right = 150, top = 48, bottom = 56;
	double pw = w - left - right, ph = h - top - bottom, ymax = 0, step, y, ms, back;
	char line[256], name[64];
	int v, i, n[2] = { 0, 0 }, threads, huge, load, round;
	long mib;
	FILE *in = fopen(csv, "r"), *f = fopen(file, "w");

	if (!in || !f)
		die(file);
	while (fgets(line, sizeof(line), in)) {
		if (sscanf(line, "%63[^,],%ld,%d,%d,%d,%d,%lf,%lf", name, &mib, &threads, &huge, &load,
			   &round, &ms, &back) != 8 || threads != 1 || huge || load)
			continue;
		for (v = 0; v < 2 && strcmp(name, variant_name[v]); v++)
			;
		if (v == 2)
			continue;
		for (i = 0; i < n[v] && points[v][i].mib != mib; i++)
			;
		if (i == 16)
			continue;
		if (i == n[v])
			n[v]++;
		points[v][i].mib = mib;
		points[v][i].exit[points[v][i].n++] = ms;
	}
	fclose(in);
	for (i = 0; i < n[0]; i++)
		if (exit_of(&points[0][i]) > ymax)
			ymax = exit_of(&points[0][i]);
	for (i = 0; i < 13 && steps[i] * 6 < ymax; i++)
		;
	step = steps[i];
	ymax = ((int)(ymax / step) + 1) * step;

	fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %g %g' role='img' "
		"aria-label='Time until wait returns, over memory'>\n<style>\n"
		"text { font: 13px system-ui, sans-serif; fill: #7a828c }\n"
		".t { font-size: 15px; font-weight: 600 }\n"
		".g { stroke: #7a828c; stroke-opacity: .35 }\n"
		".l { fill: none; stroke-width: 2.5 }\n"
		".v0 { stroke: #d4620a } .v1 { stroke: #2f81f7 }\n"
		".n0 { fill: #d4620a; font-weight: 600 } .n1 { fill: #2f81f7; font-weight: 600 }\n"
		"</style>\n", w, h);
	fprintf(f, "<text class='t' x='%g' y='22'>SIGKILL until the parent's wait returns</text>\n", left);
	for (y = 0; y <= ymax + step / 2; y += step)
		fprintf(f, "<line class='g' x1='%g' x2='%g' y1='%.1f' y2='%.1f'/>"
			"<text x='%g' y='%.1f' text-anchor='end'>%g</text>\n", left, left + pw,
			top + ph - y / ymax * ph, top + ph - y / ymax * ph, left - 8,
			top + ph - y / ymax * ph + 4, y);
	fprintf(f, "<text x='%g' y='%g' text-anchor='end'>ms</text>\n", left - 8, top - 14);
	for (mib = 0; mib <= largest; mib += largest / 4)
		fprintf(f, "<text x='%.1f' y='%g' text-anchor='middle'>%g GiB</text>\n",
			left + (double)mib / (double)largest * pw, top + ph + 20, (double)mib / 1024);
	fprintf(f, "<text x='%g' y='%g' text-anchor='middle'>resident memory, 4 KiB pages; medians</text>\n",
		left + pw / 2, top + ph + 42);
	fprintf(f, "<!-- %s -->\n", machine);
	for (v = 0; v < 2; v++) {
		double x = 0;

		fprintf(f, "<polyline class='l v%d' points='", v);
		for (mib = 0; mib <= largest; mib = mib ? mib * 2 : 256)
			for (i = 0; i < n[v]; i++)
				if (points[v][i].mib == mib) {
					x = left + (double)mib / (double)largest * pw;
					y = exit_of(&points[v][i]);
					fprintf(f, "%.1f,%.1f ", x, top + ph - y / ymax * ph);
				}
		fprintf(f, "'/>\n<text class='n%d' x='%.1f' y='%.1f'>%s</text>\n"
			"<text class='n%d' x='%.1f' y='%.1f'>%.*f ms</text>\n", v, x + 10,
			top + ph - y / ymax * ph - 12, v ? "async_teardown.h" : "plain exit", v, x + 10,
			top + ph - y / ymax * ph + 4, y < 10, y);
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
	int round, i, j, order[MAX_CASES];
	struct bench_case *c;
	FILE *f = fopen(csv, "w");

	if (!f)
		die(csv);
	fprintf(f, "# %s\nvariant,mib,threads,huge,busy,round,exit_ms,back_ms\n", machine);
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
			run(c, 100000, &c->exit[c->n], &c->back[c->n]);
			fprintf(f, "%s,%ld,%d,%d,%d,%d,%.3f,%.3f\n", variant_name[c->variant], c->mib, c->threads,
				c->huge, c->busy, round, c->exit[c->n], c->back[c->n]);
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
	int i;

	printf("\n%-29s %6s %7s %5s %4s   %-26s %s\n", "", "MiB", "threads", "pages", "CPUs",
		"exit: median (quartiles)", "back: median (quartiles), ms");
	for (i = 0; i < ncases; i++) {
		char text[2][64];

		c = &cases[i];
		snprintf(text[0], 64, "%.2f (%.2f - %.2f)", exit_of(c), quantile(c->exit, c->n, .25),
			quantile(c->exit, c->n, .75));
		snprintf(text[1], 64, "%.1f (%.1f - %.1f)", back_of(c), quantile(c->back, c->n, .25),
			quantile(c->back, c->n, .75));
		printf("%-29s %6ld %7d %5s %4s   %-26s %s\n", variant_name[c->variant], c->mib, c->threads,
			c->huge ? "huge" : "4K", c->busy ? "busy" : "idle", text[0], text[1]);
	}
}

int main(int argc, char **argv)
{
	static double few[MAX_ROUNDS], many[MAX_ROUNDS];
	const char *csv = "bench.csv", *svg = "bench.svg";
	double stolen[2], total[2], spread, worst = 0;
	int rounds = 20, i, n, opt, late = 0;
	struct bench_case *c, *p;
	long largest = 0, mib;
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
		largest = meminfo_mib("MemAvailable") / 10 * 9;
	for (mib = 1024; mib * 2 <= largest; mib *= 2)
		;
	largest = mib;
	if (largest > meminfo_mib("MemAvailable") / 10 * 9) {
		fprintf(stderr, "bench: needs %ld MiB of free memory\n", largest);
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	srand(1);
	signal(SIGINT, interrupt);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	unmappers = cpus < 64 ? cpus : 64;
	uname(&u);
	u.release[strcspn(u.release, "-")] = 0;	/* without the builder's suffix */
	snprintf(machine, sizeof(machine), "Linux %.64s, %.32s, %d CPUs, %ld MiB of memory",
		u.release, u.machine, cpus, meminfo_mib("MemTotal"));
	printf("%s\n", machine);

	add(0, PLAIN, 1, 0, 0);
	add(0, HELPER, 1, 0, 0);
	for (mib = 256; mib < largest; mib *= 4) {
		add(mib, PLAIN, 1, 0, 0);
		add(mib, HELPER, 1, 0, 0);
	}
	add(largest, PLAIN, 1, 0, 0);
	add(largest, HELPER, 1, 0, 0);
	if (largest >= 8192)
		add(8192, HELPER, 1, 0, 0);
	add(0, NAIVE, 1, 0, 0);
	if (largest >= 4096)
		add(4096, NAIVE, 1, 0, 0);
	add(1024, FALLBACK, 1, 0, 0);
	add(1024, NAIVE, 1, 0, 0);
	add(1024, UNMAP, 1, 0, 0);
	add(1024, PLAIN, 1, 1, 0);
	add(1024, HELPER, 1, 1, 0);
	for (i = 4; i <= 64; i *= 16) {
		add(512, PLAIN, i, 0, 0);
		add(512, HELPER, i, 0, 0);
		add(512, FALLBACK, i, 0, 0);
		add(512, NAIVE, i, 0, 0);
	}
	add(512, PLAIN, 1, 0, 1);
	add(512, HELPER, 1, 0, 1);
	add(512, FALLBACK, 1, 0, 1);
	add(512, NAIVE, 1, 0, 1);

	cpu_times(&stolen[0], &total[0]);
	rounds = measure(csv, machine, rounds);
	cpu_times(&stolen[1], &total[1]);
	printf("%d rounds\n", rounds);
	table();
	plot(svg, csv, largest, machine);

	printf("\nRatios of medians:\n");
	p = find(0, PLAIN, 1, 0, 0);
	ratio("exit: 4 GiB with the helper / an empty process",
		exit_of(find(4096, HELPER, 1, 0, 0)), exit_of(p), 1.5);
	ratio("exit: 8 GiB / 1 GiB, with the helper",
		exit_of(find(8192, HELPER, 1, 0, 0)), exit_of(find(1024, HELPER, 1, 0, 0)), 1.2);
	ratio("exit: 4 GiB, plain / with the helper (how many times sooner)",
		exit_of(find(4096, PLAIN, 1, 0, 0)), exit_of(find(4096, HELPER, 1, 0, 0)), 0);
	back_ratio("4 GiB, 1 thread", 4096, HELPER, 1, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, HELPER, 64, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, FALLBACK, 64, 0, 1.1);
	back_ratio("512 MiB, 64 threads", 512, NAIVE, 64, 0, 0);
	back_ratio("512 MiB, every CPU busy", 512, HELPER, 1, 1, 1.25);

	for (i = 0; i < 5 * rounds && i < MAX_ROUNDS; i++) {
		few[i] = start_us(3);
		many[i] = start_us(10000);
	}
	printf("  start takes %.0f us with 3 descriptors, %.0f us with 10000 (medians)\n",
		median(few, i), median(many, i));
	ratio("start: 10000 descriptors / 3", median(many, i), median(few, i), 1.2);

	printf("\nCounts, all of which should be 0:\n");
	for (i = 4; i <= 64; i *= 16)
		for (n = HELPER; n <= FALLBACK; n++)
			printf("  synchronous teardowns in %d runs, %2d threads, %-28s %8d\n", 25 * rounds, i,
				variant_name[n], synchronous((enum variant)n, i, 25 * rounds));
	printf("  wake-ups of an idle helper in 10 s %44ld\n", wakeups(10));
	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		if (c->variant != HELPER && c->variant != FALLBACK)
			continue;
		p = find(c->mib, PLAIN, c->threads, c->huge, c->busy);
		for (n = 0; p && n < c->n; n++)
			late += c->back[n] > back_of(p) + 1000;
	}
	printf("  helpers still there a second after a plain exit's end %25d\n", late + stayed);

	for (i = 0; i < ncases; i++) {
		c = &cases[i];
		spread = (quantile(c->back, c->n, .75) - quantile(c->back, c->n, .25)) / back_of(c);
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
