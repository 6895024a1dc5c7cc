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
 * This is the one file to compile: it includes the others, each of which begins with
 * what it covers, and ends with a table of its tests.
 *
 *	ending.c	the VMM dies
 *	starting.c	start and stop succeed
 *	failing.c	start and stop fail
 *	helper.c	what the helper is while it waits
 *	sandbox.c	what the helper may do
 *	filters.c	seccomp filters of the VMM's own
 *	release.c	RAM, and what is released before it
 *	keep.c		kept descriptors
 *	kernel.c	AIO, io_uring, KVM
 *	forking.c	fork, vfork, exec, two copies
 *	harness.h	how a test runs: judge, VMM, checks
 *	shared.h	what several topics need
 */
#define _GNU_SOURCE
#include "harness.h"
#include "shared.h"
#include "ending.c"
#include "starting.c"
#include "failing.c"
#include "helper.c"
#include "sandbox.c"
#include "filters.c"
#include "release.c"
#include "keep.c"
#include "kernel.c"
#include "forking.c"

static const struct test *const topics[] = {
	ending_tests, starting_tests, failing_tests, helper_tests, sandbox_tests, filters_tests,
	release_tests, keep_tests, kernel_tests, forking_tests, NULL
};

/* The second copy is linked only for this one test. */
static int applies(const struct test *test)
{
	return test->run != two_copies || second_start;
}

/* Whatever is left of a test is our child now.  Ends it, and says how many. */
static int left_behind(void)
{
	struct dirent *e;
	DIR *d;
	int n = 0;

	if (UNTIL(deadline, childless()))
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

static int run(const struct test *test)
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
		r = test->run();
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
		printf("ok - %s: %s%s%s\n", test->name, test->says, *verdict ? " # " : "", verdict);
		return 0;
	}
	printf("not ok - %s: %s\n# %s\n", test->name, test->says, verdict);
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
	const struct test *const *topic, *test;
	int a, names, listed = 0, failed = 0;

	if (argc > 1 && !strcmp(argv[1], "--pause"))
		for (;;)
			pause();
	if (argc > 2 && !strcmp(argv[1], "--lasting"))
		return lasting(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "--refused"))
		return refused(atoi(argv[2]));
	if (argc > 1 && !strcmp(argv[1], "-n")) {
		for (topic = topics; *topic; topic++)
			for (test = *topic; test->name; test++)
				listed += applies(test);
		printf("%d\n", listed);
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
	for (topic = topics; *topic; topic++)
		for (test = *topic; test->name; test++) {
			for (a = 1; a < argc && strcmp(argv[a], test->name); a++)
				;
			if (applies(test) && (!names || a < argc))
				failed |= run(test);
		}
	return failed;
}
