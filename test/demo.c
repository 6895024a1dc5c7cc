/*
 * demo - what async_teardown.h does for a process with much memory
 *
 * This is also the example.  A VMM needs three lines of it: the two below, and
 * the call of async_teardown_start in child().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#include "../async_teardown.h"

static const char usage[] =
	"usage: demo [-m MiB]\n"
	"       demo -c [-m MiB] [-p] [-e exit|abort|segv]\n"
	"\n"
	"Fills memory, kills itself, and shows when its parent's wait returned and when\n"
	"the memory was back: once plainly, once with async_teardown_start().\n"
	"  -m MiB  how much memory; default: half of what is free, 8192 at most\n"
	"  -c      be just the process with the memory: print vmm=PID helper=PID, wait\n"
	"          for a line or the end of stdin, and end\n"
	"  -p      without the helper (helper=0)\n"
	"  -e HOW  how to end; default: exit\n";

struct options {
	long mib;
	int child, plain;
	const char *end;
};

struct result {
	double reaped, back;	/* seconds since the kill; < 0: no result */
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- how much memory there is ---------------------------------------- */

static long mem_available_mib(void)
{
	char line[128];
	long kib = 0;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemAvailable: %ld", &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib / 1024;
}

static double number_in(const char *dir, const char *file)
{
	char path[1024];
	double n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	f = fopen(path, "r");
	if (f) {
		if (fscanf(f, "%lf", &n) != 1)	/* such as "max" */
			n = -1;
		fclose(f);
	}
	return n;
}

/* The least room in a control group and those above it; they kill as well. */
static double cgroup_room(const char *root, const char *path, const char *limit, const char *used)
{
	char dir[768];
	double max, room = 1e18;
	char *end;

	snprintf(dir, sizeof(dir), "%s%s", root, path);
	for (;;) {
		max = number_in(dir, limit);
		if (max >= 0 && max - number_in(dir, used) < room)
			room = max - number_in(dir, used);
		end = strrchr(dir, '/');
		if (!end || strlen(dir) <= strlen(root))
			return room;
		*end = 0;
	}
}

static long free_mib(void)
{
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	double room = 1e18, r;
	char line[512], *controllers, *path;
	FILE *f = fopen("/proc/self/cgroup", "r");
	long mib = mem_available_mib();
	size_t i;

	while (f && fgets(line, sizeof(line), f)) {	/* ID:CONTROLLERS:PATH */
		line[strcspn(line, "\n")] = 0;
		controllers = strchr(line, ':');
		path = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!path)
			continue;
		*path++ = 0;
		if (strstr(controllers, "memory")) {
			r = cgroup_room("/sys/fs/cgroup/memory", path,
				"memory.limit_in_bytes", "memory.usage_in_bytes");
			room = r < room ? r : room;
		}
		for (i = 0; !controllers[1] && i < 2; i++) {
			r = cgroup_room(v2[i], path, "memory.max", "memory.current");
			room = r < room ? r : room;
		}
	}
	if (f)
		fclose(f);
	return room / 1048576 < (double)mib ? (long)(room / 1048576) : mib;
}

/* --- the process with the memory --------------------------------------- */

static void fill(char *block, long mib)
{
	const int bar = 40;
	int tty = isatty(2);
	long i;

	for (i = 0; i < mib; i++) {
		memset(block + ((size_t)i << 20), 0x5a, 1 << 20);
		if (tty && (i % 64 == 63 || i == mib - 1))
			fprintf(stderr, "\rfilling memory [%-*.*s] %ld MiB", bar, (int)(bar * (i + 1) / mib),
				"########################################", i + 1);
	}
	if (tty)
		fprintf(stderr, "\r%70s\r", "");
}

/* Does not return. */
static void child(const struct options *o, FILE *report)
{
	int helper = 0;
	char *block;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);	/* 4 KiB pages, the slow case */
	block = malloc((size_t)o->mib << 20);
	if (!block) {
		fprintf(stderr, "demo: cannot allocate %ld MiB: %s\n", o->mib, strerror(errno));
		exit(1);
	}
	fill(block, o->mib);

	if (!o->plain) {
		helper = async_teardown_start();
		if (helper < 0)	/* a VMM would warn, and go on */
			fprintf(stderr, "demo: no asynchronous teardown: %s\n", strerror(-helper));
	}

	fprintf(report, "vmm=%d helper=%d\n", (int)getpid(), helper);
	fflush(report);
	while (getchar() != '\n' && !feof(stdin))
		;
	if (!strcmp(o->end, "abort"))
		abort();
	if (!strcmp(o->end, "segv"))
		raise(SIGSEGV);
	exit(0);
}

/* --- the supervisor ---------------------------------------------------- */

static struct result measure(struct options o, int plain)
{
	struct result r = { -1, -1 };
	long before = mem_available_mib();
	int report[2], hold[2], vmm, helper;
	double killed, gone;
	char line[64];
	FILE *f;
	pid_t pid;

	o.plain = plain;
	if (pipe(report) || pipe(hold) || (pid = fork()) < 0) {
		perror("demo");
		return r;
	}
	if (!pid) {
		dup2(hold[0], 0);	/* has no end while this supervisor lives */
		close(hold[1]);
		close(report[0]);
		child(&o, fdopen(report[1], "w"));
	}
	close(report[1]);
	close(hold[0]);
	f = fdopen(report[0], "r");
	if (!f || !fgets(line, sizeof(line), f) ||
	    sscanf(line, "vmm=%d helper=%d", &vmm, &helper) != 2 || helper < 0) {
		fputs("demo: the process with the memory has failed\n", stderr);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return r;
	}
	fclose(f);

	killed = now();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	r.reaped = now() - killed;

	/* The helper is our child now, for we are the subreaper. */
	alarm(600);
	while (waitpid(-1, NULL, __WALL) > 0)
		;
	alarm(0);
	gone = r.back = now() - killed;
	while (mem_available_mib() < before - o.mib / 10 - 64) {	/* others come and go */
		if (now() - killed > gone + 1) {	/* others have it by now */
			r.back = gone;
			break;
		}
		usleep(1000);
		r.back = now() - killed;
	}
	close(hold[1]);
	return r;
}

static void row(const char *who, const char *what, double seconds, double longest)
{
	const int width = 44;
	int n = (int)(seconds / longest * width + 0.5);

	printf("  %-22s %-13s %9.1f ms  %.*s\n", who, what, seconds * 1e3, n > 0 ? n : 1,
		n > 0 ? "############################################" : "|");
}

static int compare(const struct options *o)
{
	struct result plain, helped;
	double longest;

	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	plain = measure(*o, 1);
	if (plain.back < 0)
		return 1;
	helped = measure(*o, 0);
	if (helped.back < 0)
		return 1;
	longest = plain.back > helped.back ? plain.back : helped.back;

	printf("A process with %ld MiB of memory, in 4 KiB pages, is killed.\n\n", o->mib);
	row("plain", "wait returns", plain.reaped, longest);
	row("", "memory back", plain.back, longest);
	row("async_teardown_start()", "wait returns", helped.reaped, longest);
	row("", "memory back", helped.back, longest);
	printf("\nIts parent can go on %.0f times sooner.\n", plain.reaped / helped.reaped);
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = { 0, 0, 0, "exit" };
	long room = free_mib();
	char *end;
	int opt;

	while ((opt = getopt(argc, argv, "m:cpe:")) != -1) {
		switch (opt) {
		case 'm':
			errno = 0;
			o.mib = strtol(optarg, &end, 10);
			if (*end || errno || o.mib < 1 || strspn(optarg, "0123456789") != strlen(optarg))
				goto usage;
			break;
		case 'c':
			o.child = 1;
			break;
		case 'p':
			o.plain = 1;
			break;
		case 'e':
			o.end = optarg;
			if (strcmp(o.end, "exit") && strcmp(o.end, "abort") && strcmp(o.end, "segv"))
				goto usage;
			break;
		default:
			goto usage;
		}
	}
	if (optind < argc)
		goto usage;

	if (!o.mib)
		o.mib = room / 2 < 8192 ? room / 2 : 8192;
	if (o.mib < 1 || o.mib > room - room / 10) {
		fprintf(stderr, "demo: %ld MiB is too much: %ld MiB are free, and a tenth of that is spared\n",
			o.mib, room);
		return 1;
	}
	if (o.child)
		child(&o, stdout);
	return compare(&o);
usage:
	fputs(usage, stderr);
	return 2;
}
