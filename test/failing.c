/*
 * failing.c - start and stop that cannot do their work: which error, after what wait, and
 * that nothing is left
 *
 * Process limits, PID namespaces, a helper that a debugger holds or somebody kills, a file
 * server (FUSE) that does not answer, a lock that nobody will release, signals that come
 * while the caller waits.  Errors by seccomp filters are in filters.c, those of kept
 * descriptors in keep.c.
 *
 * A new case: a VMM that calls fails_with(error), then killed_synchronously(); plus its line
 * in the table below.
 */
#include <linux/fuse.h>
#include <sys/ptrace.h>

static void start_at_process_limit(void)
{
	struct rlimit none = { 0, 0 };

	if (!geteuid())
		MUST(!setresuid(54321, 54321, 54321));
	MUST(!setrlimit(RLIMIT_NPROC, &none));
	fails_with(-EAGAIN);
}

static const char *process_limit(void)
{
	TRY(spawn(start_at_process_limit));
	return killed_synchronously();
}

static void start_at_third_thread(void)
{
	/* this one, the one that starts the helper, the helper, one thread of it */
	struct rlimit four = { 4, 4 };

	if (!geteuid())
		MUST(!setresuid(54322, 54322, 54322));
	MUST(!setrlimit(RLIMIT_NPROC, &four));
	sh->result = async_teardown_start();
	if (childless())
		MUST_INT(sh->result, <, 0);
	else
		MUST_INT(sh->result, >, 0);
}

static const char *limit_at_third_thread(void)
{
	int several;

	TRY(spawn(start));
	several = threads_of(sh->helper) >= 3;
	TRY(killed_asynchronously());
	if (!several)
		SKIP(NO_THREADS);
	if (geteuid())		/* else other processes of this user count, too */
		SKIP("needs root");
	TRY(spawn(start_at_third_thread));
	CHECK_INT(sh->result, ==, -EAGAIN);
	return killed_synchronously();
}

static void start_as_pid_1(void)
{
	MUST_INT(getpid(), ==, 1);
	atd_shared.lock = 1;	/* as if cloned into this namespace by another PID 1 */
	fails_with(-EOPNOTSUPP);
}

static void start_after_unshare(void)
{
	pid_t child;

	sh->second = unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID);
	if (sh->second)
		return;
	fails_with(-EINVAL);
	if (prctl(PR_GET_SECCOMP))	/* start has made a process there, which was PID 1 */
		return;
	child = fork();		/* PID 1 of the namespace, which start has left alone */
	if (!child)
		_exit(getpid() == 1 ? 0 : 1);
	MUST(succeeds(child));
}

static const char *pid_namespaces(void)
{
	TRY(spawn(start));	/* a judge that may unshare itself later */
	TRY(killed_asynchronously());
	if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID))
		SKIP(NO_PID_NAMESPACE);
	TRY(spawn(start_as_pid_1));
	TRY(killed_synchronously());
	return NULL;
}

static const char *unshared_pid_namespace(void)
{
	TRY(spawn(start_after_unshare));
	TRY(killed_synchronously());
	if (sh->second)
		SKIP(NO_PID_NAMESPACE);
	return NULL;
}

static void start_when_told(void)
{
	double since;

	ready();
	await_go();
	since = now();
	sh->second = async_teardown_start();
	sh->counter = (int)(now() - since);
	sh->passed = 1;
	while (sh->go != 2)
		nap();
	sh->helper = async_teardown_start();
	sh->passed = 2;
}

/* Start and stop wait for thirty seconds, also by a clock, and not for less. */
enum { ALMOST_30 = 29 };

static int is_killed(pid_t pid)
{
	return (strtoull(status(pid, "SigPnd"), NULL, 16) | strtoull(status(pid, "ShdPnd"), NULL, 16)) >>
		(SIGKILL - 1) & 1;
}

/* Has the VMM call start, and traces it so that its helper never runs. */
static const char *hold_helper(pid_t *helper)
{
	const long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
	/* Under a filter another process comes first, to try exit. */
	int st, trial_to_come = prctl(PR_GET_SECCOMP) != 0;
	pid_t pid, trial = 0;

	*helper = 0;
	TRY(spawn(start_when_told));
	if (ptrace(PTRACE_SEIZE, vmm, 0, options))
		SKIP(NO_TRACING);
	sh->go = 1;
	while (!*helper) {
		CHECK(UNTIL(deadline, (pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0));
		if (pid == trial && !WIFSTOPPED(st))
			continue;
		CHECK(WIFSTOPPED(st));
		if (pid != trial && atoi(status(pid, "Tgid")) != vmm) {
			if (!trial_to_come) {
				*helper = pid;
				continue;
			}
			trial_to_come = 0;
			trial = pid;
		}
		CHECK(!ptrace(PTRACE_CONT, pid, 0, 0));
	}
	return NULL;
}

/* The VMM runs on; its threads' stops and ends are the tracer's. */
static int vmm_passes(pid_t helper, int what)
{
	int st, sig;
	pid_t pid;

	return UNTIL(deadline, ({
		while ((pid = waitpid(-1, &st, WNOHANG | __WALL)) > 0)
			if (WIFSTOPPED(st) && pid != helper) {
				sig = st >> 16 ? 0 : WSTOPSIG(st);
				ptrace(PTRACE_CONT, pid, 0, (long)sig);
			}
		sh->passed == what;
	}));
}

static const char *helper_held(void)
{
	pid_t held;

	TRY(hold_helper(&held));
	CHECK(vmm_passes(held, 1));
	CHECK_INT(sh->second, ==, -ETIMEDOUT);
	CHECK_INT(sh->counter, >=, ALMOST_30);
	/* it is killed, but traced; when it can die, the next start reaps it */
	ptrace(PTRACE_DETACH, held, 0, 0);
	sh->go = 2;
	CHECK(vmm_passes(0, 2));
	CHECK_INT(sh->helper, >, 0);
	CHECK_INT(sh->helper, !=, held);
	CHECK(signal_one(held, 0) && errno == ESRCH);
	return NULL;
}

static const char *killed_in_set_up(void)
{
	pid_t held;

	TRY(hold_helper(&held));
	CHECK(!signal_one(held, SIGKILL));
	CHECK(vmm_passes(held, 1));
	CHECK_INT(sh->second, ==, -ECANCELED);
	sh->go = 2;
	CHECK(vmm_passes(0, 2));
	CHECK_INT(sh->helper, >, 0);
	return NULL;
}

/* SIGTERM waits as long as start and stop do; SIGKILL does not. */
static const char *killed_while_waiting(pid_t helper)
{
	int st;

	CHECK(!signal_one(vmm, SIGTERM));
	CHECK(strtoull(status(vmm, "ShdPnd"), NULL, 16) & 1ULL << (SIGTERM - 1));
	CHECK(strtoull(status(vmm, "SigBlk"), NULL, 16) & 1ULL << (SIGTERM - 1));
	CHECK(state(vmm) && state(vmm) != 'Z' && !sh->passed);
	CHECK(by_kill());
	/* also, in start, its thread that waits for the helper */
	CHECK(UNTIL(deadline, waitpid(-1, &st, WNOHANG | __WALL) == vmm && WTERMSIG(st) == SIGKILL));
	CHECK(!ptrace(PTRACE_DETACH, helper, 0, 0));
	CHECK(reap(helper, NULL) && mm_freed());
	return NULL;
}

static void start_and_stop_when_told(void)
{
	start();
	ready();
	await_go();
	async_teardown_stop();
	sh->passed = 1;
}

static const char *signals_wait(void)
{
	pid_t helper;
	int st;

	TRY(hold_helper(&helper));
	CHECK(UNTIL(deadline, state(vmm) == 'D'));	/* for the thread that clones */
	TRY(killed_while_waiting(helper));
	TRY(spawn(start_and_stop_when_told));
	helper = sh->helper;
	CHECK(!ptrace(PTRACE_SEIZE, helper, 0, PTRACE_O_TRACEEXIT));
	sh->go = 1;
	CHECK(reap(helper, &st) && WIFSTOPPED(st));
	return killed_while_waiting(helper);
}

static int fuse = -1;

static void fuse_reply(uint64_t unique, const void *data, size_t size)
{
	struct { struct fuse_out_header h; char data[256]; } out;

	memset(&out, 0, sizeof(out));
	out.h.unique = unique;
	out.h.len = (uint32_t)(sizeof(out.h) + size);
	if (size)
		memcpy(out.data, data, size);
	if (write(fuse, &out, out.h.len) < 0)
		return;
}

/* A file system that is one file; to a flush it answers when told. */
static void *serve(void *arg)
{
	static char buf[1 << 17];
	struct fuse_in_header *in = (void *)buf;
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = 4096 };
	struct fuse_attr_out attr = { .attr = { .ino = 1, .mode = S_IFREG | 0666, .nlink = 1 } };
	struct fuse_open_out opened = { .fh = 1 };

	(void)arg;
	while (read(fuse, buf, sizeof(buf)) > 0)
		switch (in->opcode) {
		case FUSE_INIT: fuse_reply(in->unique, &init, sizeof(init)); break;
		case FUSE_GETATTR: fuse_reply(in->unique, &attr, sizeof(attr)); break;
		case FUSE_OPEN: fuse_reply(in->unique, &opened, sizeof(opened)); break;
		case FUSE_FLUSH:
			sh->entered++;
			while (!sh->go)
				nap();
			fuse_reply(in->unique, NULL, 0);
			break;
		case FUSE_FORGET: break;
		default: fuse_reply(in->unique, NULL, 0);
		}
	return NULL;
}

/* A file of this mode, at mounted_file. */
static const char *mount_fuse(unsigned mode)
{
	char options[128];

	TRY(private_mounts());	/* before /dev/fuse is opened: it has to be by who mounts */
	if ((fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC)) < 0)
		return cannot_open("/dev/fuse");
	snprintf(options, sizeof(options), "fd=%d,rootmode=%o,user_id=%d,group_id=%d",
		fuse, S_IFREG | mode, (int)geteuid(), (int)getegid());
	if (mount("atd", mounted_file, "fuse", 0, options))
		SKIP(MAY_NOT_MOUNT);
	return NULL;
}

static const char *mount_slow_file(void)
{
	pthread_t t;

	TRY(mount_fuse(0666));
	CHECK(!pthread_create(&t, NULL, serve, NULL));
	return NULL;
}

/* /dev/fuse is left to the judge alone: with it ends all waiting for an answer. */
static void open_slow_file(void)
{
	MUST(!close(fuse) && open(mounted_file, O_RDONLY) >= 0);
}

static void start_with_slow_file(void)
{
	open_slow_file();
	ready();
	sh->second = async_teardown_start();
	MUST(childless());
	sh->helper = async_teardown_start();
	MUST_INT(sh->helper, >, 0);
	sh->passed = 1;
}

static void *start_slowly(void *arg)
{
	(void)arg;
	while (!sh->attempt)
		nap();
	async_teardown_start();
	return NULL;
}

static void start_with_slow_file_when_told(void)
{
	pthread_t t;

	open_slow_file();
	MUST(!pthread_create(&t, NULL, start_slowly, NULL));
}

static const char *slow_flush(void)
{
	pid_t helper;
	double since;

	TRY(mount_slow_file());
	TRY(spawn(start_with_slow_file));
	/* Killed after thirty seconds, it ends as soon as the server has answered. */
	CHECK(UNTIL(deadline, sh->entered) && (helper = child_of(vmm)));
	since = now();
	CHECK(UNTIL(deadline, is_killed(helper)));
	CHECK_INT(now() - since, >=, ALMOST_30);
	sh->go = 1;
	CHECK(UNTIL(deadline, sh->passed));
	CHECK_INT(sh->second, ==, -ETIMEDOUT);
	CHECK_INT(sh->helper, >, 0);
	TRY(killed_and_gone());

	/* The VMM is killed in start, and a SIGSTOP keeps the helper from noticing. */
	TRY(spawn(start_with_slow_file_when_told));
	sh->go = 0;
	sh->entered = 0;
	sh->attempt = 1;
	CHECK(UNTIL(deadline, sh->entered) && (helper = child_of(vmm)));
	CHECK(!signal_one(helper, SIGSTOP) && by_kill());
	sh->go = 1;
	CHECK(reap(vmm, NULL) && reap(helper, NULL) && mm_freed());
	return NULL;
}

static void start_under_stale_lock(void)
{
	const double since = now();

	atd_shared.lock = getpid();	/* as a fork would copy it, to the same PID */
	fails_with(-ETIMEDOUT);
	MUST_INT(now() - since, >=, ALMOST_30);
}

static const char *stale_lock(void)
{
	TRY(spawn(start_under_stale_lock));
	return killed_synchronously();
}

static void stop_and_start_when_told(void)
{
	double since;

	start();
	ready();
	await_go();
	since = now();
	sh->second = async_teardown_stop();
	sh->counter = (int)(now() - since);
	sh->passed = 1;
	while (sh->go != 2)
		nap();
	sh->result = async_teardown_start();
	sh->passed = 2;
}

/* Killed, it stays before its end as long as it is traced. */
static const char *stop_held(void)
{
	pid_t held;
	int st;

	TRY(spawn(stop_and_start_when_told));
	held = sh->helper;
	if (ptrace(PTRACE_SEIZE, held, 0, PTRACE_O_TRACEEXIT)) {
		TRY(killed_and_gone());
		SKIP(NO_TRACING);
	}
	sh->go = 1;
	CHECK(reap(held, &st) && WIFSTOPPED(st));
	CHECK(UNTIL(deadline, sh->passed));
	CHECK_INT(sh->second, ==, -ETIMEDOUT);
	CHECK_INT(sh->counter, >=, ALMOST_30);
	CHECK(!ptrace(PTRACE_DETACH, held, 0, 0));
	sh->go = 2;
	CHECK(UNTIL(deadline, sh->passed == 2));
	CHECK_INT(sh->result, >, 0);
	CHECK(signal_one(held, 0) && errno == ESRCH);	/* and the old one is reaped */
	sh->helper = sh->result;
	return killed_and_gone();
}

/* Most of their time these wait, so they do it side by side, with a judge each. */
static const char *timeouts(void)
{
	static const char *(*const parts[])(void) = { helper_held, stop_held, slow_flush, stale_lock };
	enum { N = sizeof(parts) / sizeof(parts[0]) };
	__typeof__(*sh) *all = mmap(NULL, N * sizeof(*all), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const char *r, *skipped = NULL;
	pid_t judges[N];
	int i, st;

	CHECK(all != MAP_FAILED);
	for (i = 0; i < N; i++) {
		CHECK_INT((judges[i] = fork()), >=, 0);
		if (judges[i])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_CHILD_SUBREAPER, 1);
		sh = &all[i];
		deadline *= 5;	/* start and stop count naps, which a busy machine makes longer */
		r = parts[i]();
		snprintf(sh->verdict, sizeof(sh->verdict), "%s", r ? r : "");
		_exit(0);
	}
	for (i = 0; i < N; i++) {
		CHECK(waitpid(judges[i], &st, 0) == judges[i]);
		CHECK_INT(st, ==, 0);
	}
	for (i = 0; i < N; i++)
		if (!strncmp(all[i].verdict, "SKIP ", 5))
			skipped = all[i].verdict;
		else if (*all[i].verdict)
			return all[i].verdict;
	return skipped;
}

static const struct test failing_tests[] = {
	{ "process_limit", process_limit, "-EAGAIN at the process limit" },
	{ "pid_namespaces", pid_namespaces, "-EOPNOTSUPP for PID 1 of a PID namespace" },
	{ "unshared_pid_namespace", unshared_pid_namespace, "-EINVAL after unshare(CLONE_NEWPID), and the namespace is as it was" },
	{ "timeouts", timeouts, "-ETIMEDOUT after thirty seconds while a debugger or a file's server holds the helper, or another the lock; then they go on" },
	{ "killed_in_set_up", killed_in_set_up, "-ECANCELED when the helper is killed before it is ready" },
	{ "limit_at_third_thread", limit_at_third_thread, "-EAGAIN at the process limit of the third thread, nothing left" },
	{ "signals_wait", signals_wait, "SIGTERM waits while start and stop do, SIGKILL ends the VMM" },
	{ NULL, NULL, NULL }
};
