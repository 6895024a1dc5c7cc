/*
 * contain - run the tests, and leave nothing of them behind, however they end
 *
 *	contain SHELL [ARGUMENT...]
 *
 * Runs SHELL under the name "sh".  TMPDIR is then a new directory, and CONTAINED the
 * PID of the shell's parent.  When the shell ends, or a signal ends this program, it
 * kills every process that is left, and removes the directory and the control groups of
 * the tests.
 *
 * A helper outlives what started it, and nothing of its own tells whose it is: it has
 * its own session, and it unmaps its environment.  But a process that loses its parent
 * becomes a child of the nearest subreaper.  So this is one, and kills its children
 * until there are none.  It runs as two processes, one below the other, for one of them
 * may be killed.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char directory[4096];

/* The beginning of a file, "" if there is none. */
static const char *slurp(const char *dir, const char *name, const char *file)
{
	static char text[512];
	char path[512];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s/%s", dir, name, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = 0;
	if (fd >= 0)
		close(fd);
	return text;
}

static void put(const char *dir, const char *file, const char *text)
{
	char path[512];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	if ((fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		perror(path);
	close(fd);
}

/*
 * A scenario names its control group by its PID.  Removes the groups whose scenario has
 * ended, also those of other runs.  Thaws them first: a frozen process does not die.
 */
static void sweep_cgroups(const char *root, int depth)
{
	static const char prefix[] = "async-teardown-";
	char path[300], pid[16];
	struct dirent *e;
	DIR *d = opendir(root);

	while (d && (e = readdir(d))) {
		if (*e->d_name == '.' || snprintf(path, sizeof(path), "%s/%s", root, e->d_name) >= (int)sizeof(path))
			continue;
		if (strncmp(e->d_name, prefix, sizeof(prefix) - 1)) {
			if (depth && e->d_type == DT_DIR)
				sweep_cgroups(path, depth - 1);
			continue;
		}
		snprintf(pid, sizeof(pid), "%d", atoi(e->d_name + sizeof(prefix) - 1));
		if (!strcmp(slurp("/proc", pid, "comm"), "scenarios\n"))
			continue;
		put(path, "cgroup.freeze", "0");
		put(path, "freezer.state", "THAWED");
		rmdir(path);
	}
	if (d)
		closedir(d);
}

static int kill_children(void)
{
	const char *end;
	struct dirent *e;
	DIR *d = opendir("/proc");
	int n = 0;

	while (d && (e = readdir(d)))
		if (atoi(e->d_name) > 1 && (end = strrchr(slurp("/proc", e->d_name, "stat"), ')')) &&
		    strlen(end) > 4 && atoi(end + 4) == getpid())
			n += !kill(atoi(e->d_name), SIGKILL);
	if (d)
		closedir(d);
	return n;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st, (void)type, (void)where;
	remove(path);
	return 0;
}

static void clean_up(pid_t child)
{
	const struct timespec nap = { 0, 5000000 };
	int tries = 12000;	/* a minute */
	pid_t pid;

	if (child > 0)
		kill(child, SIGKILL);	/* also where there is no /proc */
	for (; tries; tries--) {
		while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) > 0)
			;
		sweep_cgroups("/sys/fs/cgroup", 1);
		if (pid < 0)
			break;
		kill_children();
		nanosleep(&nap, NULL);
	}
	if (!tries)
		fprintf(stderr, "contain: %d processes do not end\n", kill_children());
	nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Waits for the child, cleans up, and ends as the child has, or by the signal. */
static void mind(pid_t child, const sigset_t *set)
{
	int sig, st = 0;
	pid_t pid;

	do {
		sig = sigwaitinfo(set, NULL);
		while ((pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0 && pid != child)
			;
	} while (pid != child && (sig == SIGCHLD || sig < 0));
	if (pid == child) {
		clean_up(0);
		exit(WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st));
	}
	clean_up(child);
	signal(sig, SIG_DFL);
	raise(sig);
	sigprocmask(SIG_UNBLOCK, set, NULL);
	exit(128 + sig);
}

int main(int argc, char **argv)
{
	static const int signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	const char *shell = argv[1], *tmp = getenv("TMPDIR");
	char pid[16];
	sigset_t set, old;
	size_t i;
	int level;

	if (argc < 2) {
		fputs("usage: contain SHELL [ARGUMENT...]\n", stderr);
		return 2;
	}
	snprintf(directory, sizeof(directory), "%s/async-teardown.XXXXXX", tmp && *tmp ? tmp : "/tmp");
	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (signal(signals[i], SIG_DFL) == SIG_IGN)	/* as nohup does */
			signal(signals[i], SIG_IGN);
		else
			sigaddset(&set, signals[i]);
	sigprocmask(SIG_BLOCK, &set, &old);
	if (!mkdtemp(directory) || setenv("TMPDIR", directory, 1)) {
		perror(directory);
		return 2;
	}
	/* A make that is killed tells nobody. */
	if (getenv("MAKELEVEL"))
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	for (level = 0; level < 2; level++) {
		pid_t parent = getpid(), child;

		prctl(PR_SET_CHILD_SUBREAPER, 1);
		child = fork();
		if (child)
			mind(child, &set);	/* does not return */
		if (level == 1)
			break;
		/* A ^C or a timeout goes to the whole process group, and would end tests
		 * one by one.  The process above gets it too, and ends this one. */
		setsid();
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != parent)
			raise(SIGTERM);
	}
	snprintf(pid, sizeof(pid), "%d", getppid());
	setenv("CONTAINED", pid, 1);
	sigprocmask(SIG_SETMASK, &old, NULL);
	argv[1] = strcpy(pid, "sh");
	execv(shell, argv + 1);
	perror(shell);
	_exit(127);
}
