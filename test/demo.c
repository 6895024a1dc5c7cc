/*
 * demo - what async_teardown.h does for a process with much memory
 *
 * This is also the example.  A VMM needs the last three of the lines below, of which
 * the first is for more than one thread, and what start_helper() does.
 */
#define _GNU_SOURCE
#define ASYNC_TEARDOWN_THREADS 8	/* at most; they sleep until there is RAM to free */
#define ASYNC_TEARDOWN_IMPLEMENTATION
#include "../async_teardown.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "measure.h"

static const char usage[] =
	"usage: demo [-m MiB]\n"
	"       demo -c [-m MiB] [-p | -r] [-e exit|abort|segv]\n"
	"\n"
	"Fills memory, kills itself, and shows when its parent's wait returned, when a\n"
	"resource was free that it had held by a mapping, and when the memory was back:\n"
	"plainly, with async_teardown_start(), and with async_teardown_ram() as well; then\n"
	"also when a pipe's end told that the devices were free.\n"
	"  -m MiB  how much memory; default: half of what is free, 8192 at most, and no\n"
	"          more than can be filled in 10 seconds\n"
	"  -c      be just the process with the memory: print vmm=PID helper=PID, wait\n"
	"          for a line or the end of stdin, and end\n"
	"  -p      without the helper (helper=0)\n"
	"  -r      with async_teardown_ram()\n"
	"  -e HOW  how to end; default: exit\n";

struct options {
	long mib;
	double seconds;		/* to fill it in; 0: as many as it takes */
	int child, plain, ram;
	const char *end;
};

static long *filled;		/* MiB; a page that is shared with the process */

/* --- the process with the memory --------------------------------------- */

/*
 * What a VMM does.  Returns the helper's PID, or 0.
 *
 * first and last are the writing ends of two pipes of the supervisor's, or -1.  When
 * the VMM is dead, the helper closes the first one when the devices are free, and the
 * last one when all is back; the supervisor reads the ends of file.
 */
static int start_helper(void *ram, size_t size, int with_ram, int first, int last)
{
	const int kept[] = { first, last };
	int helper;

	if (with_ram) {
		async_teardown_ram(ram, size);
		async_teardown_threads((int)sysconf(_SC_NPROCESSORS_ONLN));
	}
	if (first >= 0 && async_teardown_keep(kept, 2))
		abort();
	helper = async_teardown_start();
	if (helper < 0) {	/* warn, and go on: it will die as slowly as before */
		fprintf(stderr, "demo: no asynchronous teardown: %s\n", strerror(-helper));
		return 0;
	}
	return helper;
}

static void fill(char *block, long mib, double seconds, int draws)
{
	const double start = now_ms();
	double part = 0;	/* of the memory or of the time, what is nearer to its end */
	long i, drawn = 0;

	for (i = 0; i < mib && part < 1; i++) {
		memset(block + ((size_t)i << 20), 0x5a, 1 << 20);
		part = (double)(i + 1) / (double)mib;
		if (seconds > 0 && now_ms() - start > part * seconds * 1e3)
			part = (now_ms() - start) / seconds / 1e3;
		for (; draws && drawn < 40 && drawn < (long)(40 * part); fflush(stdout), drawn++)
			putchar('#');
	}
	if (draws)
		printf(" %ld MiB\n", i);
	*filled = i;
}

/* What the process holds for the supervisor to watch. */
struct held { struct resource device, first, last; };

/* Does not return.  held: NULL without a supervisor. */
static void child(const struct options *o, const struct held *held, FILE *report)
{
	const size_t size = (size_t)o->mib << 20;
	int helper = 0;
	char *ram;

	prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);	/* 4 KiB pages, the slow case */
	if (held && (resource_hold(&held->device) || resource_hold(&held->first) || resource_hold(&held->last))) {
		perror("demo: cannot lock a file");
		exit(1);
	}
	ram = malloc(size);
	if (!ram) {
		fprintf(stderr, "demo: cannot allocate %ld MiB: %s\n", o->mib, strerror(errno));
		exit(1);
	}
	fill(ram, o->mib, o->seconds, held != NULL);
	if (!o->plain)
		helper = start_helper(ram, size, o->ram, held && o->ram ? held->first.there : -1,
			held && o->ram ? held->last.there : -1);

	fprintf(report, "vmm=%d helper=%d\n", (int)getpid(), helper);
	fflush(NULL);
	while (getchar() != '\n' && !feof(stdin))
		;
	if (!strcmp(o->end, "abort"))
		abort();
	if (!strcmp(o->end, "segv"))
		raise(SIGSEGV);
	exit(0);
}

/* --- the supervisor ---------------------------------------------------- */

static struct way {
	const char *name;
	int plain, ram;
	double reaped, sign, free, back;	/* ms since the kill */
} ways[] = {
	{ "plain", 1, 0, 0, 0, 0, 0 },
	{ "async_teardown_start()", 0, 0, 0, 0, 0, 0 },
	{ "and async_teardown_ram()", 0, 1, 0, 0, 0, 0 },
};
enum { WAYS = sizeof(ways) / sizeof(ways[0]) };

/* Returns what was held, or NULL if that has failed. */
static const char *measure(struct way *w, struct options o)
{
	const long before = meminfo_mib("MemAvailable");
	struct held held;
	int report[2], hold[2], vmm, helper;
	double killed, gone, last;
	char line[64];
	FILE *f;
	pid_t pid;

	o.plain = w->plain;
	o.ram = w->ram;
	fflush(stdout);
	if ((resource_make(&held.device, SOCKET) && resource_make(&held.device, LOCK)) ||
	    resource_make(&held.first, PIPE) || resource_make(&held.last, PIPE) ||
	    pipe(report) || pipe(hold) || (pid = fork()) < 0) {
		perror("demo");
		return NULL;
	}
	if (!pid) {
		dup2(hold[0], 0);	/* has no end while this supervisor lives */
		close(hold[1]);
		close(report[0]);
		child(&o, &held, fdopen(report[1], "w"));
	}
	close(report[1]);
	close(hold[0]);
	f = fdopen(report[0], "r");
	if (!f || !fgets(line, sizeof(line), f) ||
	    sscanf(line, "vmm=%d helper=%d", &vmm, &helper) != 2 || resource_watch(&held.device) ||
	    resource_watch(&held.first) || resource_watch(&held.last)) {
		fputs("demo: the process with the memory has failed\n", stderr);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return NULL;
	}
	fclose(f);
	usleep(100000);		/* all is asleep by then */

	alarm(600);		/* no wait is without an end */
	killed = now_ms();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	w->reaped = now_ms() - killed;

	/* The helper is our child now, for we are the subreaper. */
	while (waitpid(-1, NULL, __WALL) > 0)
		;
	gone = now_ms() - killed;
	w->free = resource_wait(&held.device) - killed;
	w->sign = resource_wait(&held.first) - killed;
	last = resource_wait(&held.last) - killed;
	if (w->ram)	/* tells the same to those who are not the helper's parent */
		gone = last;
	w->back = gone;
	alarm(0);
	while (meminfo_mib("MemAvailable") < before - *filled / 10 - 64) {	/* others come and go */
		if (now_ms() - killed > gone + 1000) {	/* others have it by now */
			w->back = gone;
			break;
		}
		usleep(1000);
		w->back = now_ms() - killed;
	}
	close(hold[1]);
	return held.device.kind == SOCKET ? "socket free" : "lock free";
}

static void row(const char *who, const char *what, double ms, double longest)
{
	const int width = 40;
	int n = (int)(ms / longest * width + 0.5);

	printf("  %-24s  %-14s %8.1f ms  %.*s\n", who, what, ms, n > 0 ? n : 1,
		n > 0 ? "########################################" : "|");
}

static int compare(struct options o)
{
	const char *held = NULL;
	double longest = 0;
	struct way *w;

	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	printf("Three times, filling up to %ld MiB%s:\n\n", o.mib, o.seconds > 0 ? ", 10 seconds at most" : "");
	for (w = ways; w < ways + WAYS; w++) {
		printf("  %-24s  ", w->name);
		held = measure(w, o);
		if (!held)
			return 1;
		o.mib = *filled;	/* the same for all */
		o.seconds = 0;
		longest = w->back > longest ? w->back : longest;
		longest = w->free > longest ? w->free : longest;
	}

	printf("\nA process with %ld MiB of memory, in 4 KiB pages, was killed.\n\n", o.mib);
	for (w = ways; w < ways + WAYS; w++) {
		row(w->name, "wait returns", w->reaped, longest);
		if (w->ram)
			row("", "devices free *", w->sign, longest);
		row("", held, w->free, longest);
		row("", "memory back", w->back, longest);
	}
	printf("\n* The helper has closed a pipe: the supervisor can start the next VM, if there is memory for both.\n"
		"%s\n", held[0] == 's' ?
		"The socket was in an io_uring.  With or without a helper, the kernel closes that a little later." :
		"The lock was on a file that the process had mapped.");
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = { 0, 0, 0, 0, 0, "exit" };
	long room = free_mib();
	char *end;
	int opt;

	while ((opt = getopt(argc, argv, "m:cpre:")) != -1) {
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
		case 'r':
			o.ram = 1;
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

	if (!o.mib) {
		o.mib = room < 0 ? 256 : room / 2 < 8192 ? room / 2 : 8192;
		o.seconds = 10;
	}
	if (room >= 0 && (o.mib < 1 || o.mib > room - room / 10)) {
		fprintf(stderr, "demo: %ld MiB is too much: %ld MiB are free, and a tenth of that is spared\n",
			o.mib, room);
		return 1;
	}
	filled = mmap(NULL, sizeof(*filled), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (filled == MAP_FAILED) {
		perror("demo");
		return 1;
	}
	if (o.child)
		child(&o, NULL, stdout);
	return compare(o);
usage:
	fputs(usage, stderr);
	return 2;
}
