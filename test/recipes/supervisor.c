/*
 * supervisor - runs a VM, and after a crash starts it again as soon as its devices are free
 *
 *	supervisor VMM [ARGUMENT...]
 *
 * The VMM gets the writing ends of two pipes, as 3 and 4.  It sets FD_CLOEXEC on both, and
 * keeps them, 3 first and 4 last; see carrier.c.  Without a helper both end with the VMM's
 * exit, and all goes on as slowly as before.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATIENCE = 600 };		/* seconds that a helper may take */

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Starts the VMM.  No other process may have the writing ends: they delay the signs. */
static pid_t start(char **argv, int *first, int *last)
{
	int f[2], l[2];
	pid_t pid;

	if (pipe2(f, O_CLOEXEC) || pipe2(l, O_CLOEXEC))
		die("pipe2");
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		f[1] = fcntl(f[1], F_DUPFD_CLOEXEC, 5);	/* out of the way of 3 and 4 */
		l[1] = fcntl(l[1], F_DUPFD_CLOEXEC, 5);
		if (dup2(f[1], 3) < 0 || dup2(l[1], 4) < 0)
			die("dup2");
		execvp(argv[0], argv);
		die(argv[0]);
	}
	close(f[1]);
	close(l[1]);
	*first = f[0];
	*last = l[0];
	return pid;
}

/* Waits for the end of file, and says so.  Returns 0 if it does not come in time. */
static int sign(int fd, pid_t vmm, const char *what)
{
	struct pollfd p = { fd, POLLIN, 0 };

	if (poll(&p, 1, PATIENCE * 1000) != 1) {
		fprintf(stderr, "supervisor: %d: not in %d seconds: %s\n", (int)vmm, PATIENCE, what);
		return 0;
	}
	fprintf(stderr, "supervisor: %d: %s\n", (int)vmm, what);
	close(fd);
	return 1;
}

/* A guest that broke out can keep its VMM's helper running.  It is our child, and no other is. */
static void kill_helper(pid_t supervisor, pid_t vmm)
{
	char parent[16], name[24];

	snprintf(parent, sizeof(parent), "%d", (int)supervisor);
	snprintf(name, sizeof(name), "cleanup/%d", (int)vmm);
	execlp("pkill", "pkill", "-KILL", "-P", parent, "-x", name, (char *)NULL);
	die("pkill");
}

int main(int argc, char **argv)
{
	const pid_t supervisor = getpid();
	int first, last, status;
	pid_t vmm, gone;

	if (argc < 2)
		return fputs("usage: supervisor VMM [ARGUMENT...]\n", stderr), 2;
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);	/* the helpers become our children */
	do {
		vmm = start(argv + 1, &first, &last);
		while ((gone = waitpid(-1, &status, 0)) != vmm)	/* else: helpers, log writers */
			if (gone < 0)
				die("waitpid");
		if (!fork()) {		/* the log of the last sign; the next VM does not wait for it */
			close(first);
			if (!sign(last, vmm, "all is back"))
				kill_helper(supervisor, vmm);
			_exit(0);
		}
		close(last);
		if (!sign(first, vmm, "the devices are free"))
			return 1;	/* the next VM would find them busy */
	} while (WIFSIGNALED(status));
	while (waitpid(-1, NULL, 0) > 0)
		;
	return WEXITSTATUS(status);
}
