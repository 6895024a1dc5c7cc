/*
 * scenarios - the ways that a VMM and its helper live and die, a test each
 *
 *	scenarios [NAME=VALUE...] [TEST...]	these, or all
 *	scenarios -l			list them
 *	scenarios --refused ERRNO	see refused()
 *
 * Prints "ok - NAME: ..." or "not ok - ..." a line, with "# SKIP why" where
 * something is missing.  Exit status 1 if one failed.
 *
 * This is the one file to compile: it includes the others.  Each begins with what it
 * covers and what a new case takes, and ends with the table of its tests.
 *
 *	ending.c	the VMM dies: causes, threads, races
 *	starting.c	start and stop succeed: often, at once, interrupted
 *	failing.c	start and stop fail: limits, namespaces, a helper that is held
 *	helper.c	the helper while it waits: name, descriptors, signals, control groups
 *	sandbox.c	what the helper may do, what the VMM may give up
 *	filters.c	seccomp filters and other policies around the VMM
 *	release.c	RAM, kinds of mappings, devices before RAM, the helper's threads
 *	walk.c		unmapping, against a model of address spaces
 *	keep.c		kept descriptors, guest_memfd
 *	kernel.c	AIO, io_uring, KVM
 *	forking.c	fork, vfork, exec, a second copy of the header
 *	harness.h	how a test runs: judge, VMM, checks
 *	shared.h	what several topics need: filters, RAM, mounts, control groups
 */
#define _GNU_SOURCE
#if !__has_include(<linux/userfaultfd.h>)
#error no kernel headers: install them; for musl-gcc add -idirafter /usr/include -idirafter /usr/include/$(gcc -print-multiarch)
#endif
#include "harness.h"
#include "shared.h"
#include "ending.c"
#include "starting.c"
#include "failing.c"
#include "helper.c"
#include "sandbox.c"
#include "filters.c"
#include "release.c"
#include "walk.c"
#include "keep.c"
#include "kernel.c"
#include "forking.c"

static const struct test *const topics[] = {
	ending_tests, starting_tests, failing_tests, helper_tests, sandbox_tests, filters_tests,
	release_tests, walk_tests, keep_tests, kernel_tests, forking_tests, NULL
};

/* The second copy is linked only for this one test. */
static int applies(const struct test *test)
{
	return test->run != two_copies || second_start;
}

/*
 * Nothing may stay, whatever is killed or interrupted, and a stopped helper would stay for
 * ever.  So two processes are above the judge, and both are subreapers.  The one that was
 * started only waits; its child, in a process group of its own, runs the tests.  If the
 * child dies, its parent ends what is left; if the parent does, the kernel tells the child,
 * which then does so.
 */
static sigset_t end_signals, old_mask;	/* the former with SIGCHLD */

/* What a test has changed of the machine, and may have been kept from putting back. */
static void put_back(void)
{
	rmdir(sh->cgroup);
	if (sh->huge_pages)
		set_huge_pages(0);
}

/* What is frozen does not die. */
static void thaw_cgroup(void)
{
	put("freezer.state", "THAWED");
	put("cgroup.freeze", "0");
}

/* Ends what is left, for it is our child now, and says how many that was. */
static int end_children(void)
{
	struct dirent *e;
	DIR *d;
	int n = 0, more = 1;

	thaw_cgroup();
	while (more && (d = opendir("/proc"))) {
		more = 0;
		while ((e = readdir(d)))
			if (atoi(e->d_name) && atoi(status(atoi(e->d_name), "PPid")) == getpid()) {
				signal_one(atoi(e->d_name), SIGKILL);
				more |= reap(atoi(e->d_name), NULL);
				n++;
			}
		closedir(d);
	}
	return n;
}

/* The status of a child that ends, unless this process is told to end first. */
static int attend(pid_t child)
{
	int st, sig;

	while (waitpid(child, &st, WNOHANG) == 0) {
		sigwait(&end_signals, &sig);
		if (sig != SIGCHLD) {
			end_children();
			put_back();
			_exit(128 + sig);
		}
	}
	return st;
}

static void take_signals(void)
{
	const int might[] = { SIGINT, SIGHUP };
	struct sigaction act;
	int i;

	sigemptyset(&end_signals);
	sigaddset(&end_signals, SIGCHLD);
	sigaddset(&end_signals, SIGTERM);
	for (i = 0; i < 2; i++)		/* ignored in a shell's background job */
		if (!sigaction(might[i], NULL, &act) && act.sa_handler != SIG_IGN)
			sigaddset(&end_signals, might[i]);
	sigprocmask(SIG_BLOCK, &end_signals, &old_mask);
}

static void become_subreaper(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
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
		sigprocmask(SIG_SETMASK, &old_mask, NULL);
		alarm((unsigned)(15 * deadline));
		r = test->run();
		snprintf(sh->verdict, sizeof(sh->verdict), "%s", r ? r : "");
		_exit(0);
	}
	st = attend(judge);
	thaw_cgroup();		/* if the test has failed */
	left = UNTIL(deadline, childless()) ? 0 : end_children();
	put_back();
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
	int a, st, names, failed = 0;
	pid_t parent, runner;

	if (argc > 1 && !strcmp(argv[1], "--pause"))
		for (;;)
			pause();
	if (argc > 2 && !strcmp(argv[1], "--lasting"))
		return lasting(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "--served"))
		return served(argv[2]);
	if (argc > 2 && !strcmp(argv[1], "--refused"))
		return refused(atoi(argv[2]));
	if (argc > 1 && !strcmp(argv[1], "-l")) {
		for (topic = topics; *topic; topic++)
			for (test = *topic; test->name; test++)
				if (applies(test))
					puts(test->name);
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
	take_signals();
	become_subreaper();
	parent = getpid();
	runner = fork();
	if (runner < 0)
		return 2;
	if (runner) {
		st = attend(runner);
		end_children();
		put_back();
		return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
	}
	become_subreaper();
	setpgid(0, 0);
	if (getppid() != parent)
		return 2;
	for (topic = topics; *topic; topic++)
		for (test = *topic; test->name; test++) {
			for (a = 1; a < argc && strcmp(argv[a], test->name); a++)
				;
			if (applies(test) && (!names || a < argc))
				failed |= run(test);
		}
	return failed;
}
