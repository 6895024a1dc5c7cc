/*
 * helper.c - the helper while the VMM lives: what it is, what it holds, what it costs
 *
 * Name, session, directory; open descriptors, also those above the limit or where there is no
 * /proc; wake-ups; signals sent to it.  Killed, frozen, out of memory, in a control group of
 * its own.  What a parent's wait and SIGCHLD tell of it.  What it may do is in sandbox.c.
 *
 * A new case: TRY(spawn(start)), a look at sh->helper in /proc, killed_asynchronously();
 * plus its line in the table below.
 */

static void start_in_own_place(void)
{
	FILE *f;

	MUST(!chdir("/proc"));
	start();
	MUST((f = fopen("/proc/self/oom_score_adj", "w")) && fputs("321", f) >= 0 && !fclose(f));
}

static const char *what_it_is(void)
{
	char path[64], text[64], before[4096];
	ssize_t n;

	TRY(spawn(start_in_own_place));
	snprintf(text, sizeof(text), "cleanup/%d", vmm);
	CHECK(!strcmp(status(sh->helper, "Name"), text));
	CHECK_INT(getsid(sh->helper), ==, sh->helper);
	CHECK_INT(getpgid(sh->helper), ==, sh->helper);
	CHECK_INT(atoi(status(sh->helper, "PPid")), ==, vmm);
	snprintf(path, sizeof(path), "/proc/%d/cwd", sh->helper);
	n = readlink(path, text, sizeof(text));
	CHECK(n == 1 && *text == '/');
	/* charged where the VMM is charged, and killed as readily */
	strcpy(before, slurp("/proc/%d/cgroup", vmm));
	CHECK(!strcmp(before, slurp("/proc/%d/cgroup", sh->helper)));
	if (!linux_before(4, 8))
		CHECK_INT(atoi(slurp("/proc/%d/oom_score_adj", sh->helper)), ==, 321);
	return killed_asynchronously();
}

static void start_with_files(void)
{
	struct rlimit lim = { 16, 16 };
	int fd[2], i;

	MUST(!pipe(fd));
	for (i = 0; i < 900; i++)
		MUST_INT(dup(0), >=, 0);
	/* above where the limit will be */
	MUST(!setrlimit(RLIMIT_NOFILE, &lim));
	start();
	/* the caller still has them */
	MUST_INT(write(fd[1], "x", 1), ==, 1);
	for (i = 0; i < 900; i++)
		MUST_INT(fcntl(fd[1] + 1 + i, F_GETFD), ==, 0);
}

/* Nothing, or what is its own, first its pidfd. */
static const char *holds_no_file(pid_t helper)
{
	char path[64], link[64] = "";
	int n = open_files(helper);

	CHECK(n == 0 || n == own_files(helper));
	snprintf(path, sizeof(path), "/proc/%d/fd/0", helper);
	if (n)
		CHECK(readlink(path, link, sizeof(link) - 1) > 0 && strstr(link, "pidfd"));
	return NULL;
}

static const char *holds_nothing(void)
{
	TRY(spawn(start_with_files));
	TRY(holds_no_file(sh->helper));
	return killed_asynchronously();
}

static void start_without_proc(void)
{
	struct rlimit lim;
	int i;

	for (i = 0; i < 100; i++)
		MUST_INT(dup(0), >=, 0);
	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max < 1 << 20 ? lim.rlim_max : 1 << 20;
	MUST(!setrlimit(RLIMIT_NOFILE, &lim) && fcntl(0, F_DUPFD, (int)lim.rlim_cur - 1) >= 0);
	MUST_INT(open("/", O_PATH), >=, 0);
	MUST(!chroot("/dev") && !chdir("/") && access("/proc", F_OK));
	start();
}

static void start_with_fake_proc(void)
{
	int i;

	for (i = 0; i < 100; i++)
		MUST_INT(dup(0), >=, 0);
	MUST(!chdir(mounted) && !mkdir("proc", 0755) && !mkdir("proc/self", 0755) &&
		!mkdir("proc/self/fd", 0755) && !chroot("."));
	start();
	MUST(!rmdir("proc/self/fd") && !rmdir("proc/self") && !rmdir("proc"));
}

static const char *without_proc(void)
{
	TRY(mount_tmpfs());
	TRY(spawn(start_with_fake_proc));
	TRY(holds_no_file(sh->helper));
	TRY(killed_asynchronously());
	TRY(spawn(start_without_proc));
	TRY(holds_no_file(sh->helper));
	return killed_asynchronously();
}

static void start_with_path_only(void)
{
	int fd = open("/", O_PATH);

	MUST_INT(fd, >=, 0);
	MUST_INT(async_teardown_keep(&fd, 1), ==, 0);
	start();
	sh->target = fd;
}

/* Which for most calls are not open. */
static const char *keeps_path_only(void)
{
	char path[64], link[64] = "";

	TRY(spawn(start_with_path_only));
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", sh->helper, sh->target);
	CHECK_INT(readlink(path, link, sizeof(link) - 1), ==, 1);
	CHECK(!strcmp(link, "/"));
	return killed_asynchronously();
}

static const char *idle(void)
{
	struct timespec t = { 10, 0 };
	double since;
	long before;

	TRY(spawn(start));
	CHECK(asleep(sh->helper));
	if (!has_pidfd(sh->helper)) {	/* it has to poll: stays, and does so seldom */
		t.tv_sec = 2;
		since = now();
		before = atol(status(sh->helper, "voluntary_ctxt_switches"));
		nanosleep(&t, NULL);
		CHECK(asleep(sh->helper));
		CHECK(atol(status(sh->helper, "voluntary_ctxt_switches")) - before <=
			4 + 2 * (now() - since));
		return killed_asynchronously();
	}
	before = switches(sh->helper);
	nanosleep(&t, NULL);
	CHECK_INT(before, >, 0);
	CHECK_INT(switches(sh->helper), ==, before);
	return killed_asynchronously();
}

static const char *signals(void)
{
	int i;

	TRY(spawn(start));
	for (i = 1; i <= 64; i++)
		if (i != SIGKILL && i != SIGSTOP)
			CHECK(!signal_one(sh->helper, i));
	/* what was pending would be seen to before it sleeps again */
	for (i = 0; i < 5; i++)
		CHECK(freeze(sh->helper) && thaw(sh->helper));
	CHECK(mm_held());
	return killed_asynchronously();
}

static void restart(void)
{
	start();
	ready();
	await_go();
	sh->second = async_teardown_start();
	sh->go = 0;
}

/* It may have left the memory and be no zombie yet. */
static void restart_at_once(void)
{
	const int clears = kill_clears();
	double end;
	int i, ret;

	for (i = 0; clears && i < effort(100); i++) {
		start();
		MUST(!signal_one(sh->helper, SIGKILL));
		for (end = now() + deadline; atd_shared.alive && now() < end; )
			;
		start();
		UNTIL(deadline, (ret = async_teardown_stop()) == 0);
		MUST_INT(ret, ==, 0);
		MUST(childless());
	}
	start();
}

static const char *helper_killed(void)
{
	pid_t first;

	TRY(spawn(restart));
	first = sh->helper;
	CHECK(!signal_one(first, SIGKILL) && UNTIL(deadline, state(first) == 'Z'));
	CHECK(asleep(vmm) && mm_held());
	sh->go = 1;
	CHECK(UNTIL(deadline, !sh->go));
	CHECK_INT(sh->second, >, 0);
	CHECK_INT(sh->second, !=, first);
	CHECK(signal_one(first, 0) && errno == ESRCH);	/* and the first is reaped */
	sh->helper = sh->second;
	TRY(killed_asynchronously());

	TRY(spawn(start));
	CHECK(!signal_one(sh->helper, SIGKILL) && UNTIL(deadline, state(sh->helper) == 'Z'));
	CHECK(by_kill() && reap(vmm, NULL) && reap(sh->helper, NULL) && mm_freed());

	TRY(spawn(restart_at_once));
	return killed_asynchronously();
}

static void count_sigchld(int sig) { (void)sig; sh->counter++; }

static void wait_for_children(void)
{
	pid_t child;
	int i;

	signal(SIGCHLD, count_sigchld);
	start();
	MUST(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	for (i = 0; i < 3; i++)
		if (!fork())
			_exit(0);
	for (i = 0; (child = waitpid(-1, NULL, 0)) > 0 || errno == EINTR; )
		if (child > 0) {
			MUST(child != sh->helper);
			i++;
		}
	MUST_INT(errno, ==, ECHILD);
	MUST_INT(i, ==, 3);
	MUST(UNTIL(deadline, sh->counter > 0));
	sh->counter = 0;
	signal_one(sh->helper, SIGKILL);
	MUST(UNTIL(deadline, state(sh->helper) == 'Z'));
	MUST(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST_INT(sh->counter, ==, 0);
}

static const char *wait_loops(void)
{
	TRY(spawn(wait_for_children));
	return killed_synchronously();
}

static void start_then_eat(void)
{
	size_t n;
	char *p;

	MUST(join(getpid()));
	start();
	ready();
	await_go();
	for (n = 0; n < 4096 && (p = malloc(1 << 20)); n++) {
		memset(p, 1, 1 << 20);
		__asm__ volatile("" : : "r"(p) : "memory");	/* or clang leaves it all out */
	}
}

static const char *oom(void)
{
	static const char *const v1[] = { "/sys/fs/cgroup/memory", NULL };
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	const char *r;
	pid_t helper;
	int st;

	if (make_cgroup(v1, "memory.limit_in_bytes"))
		put("memory.limit_in_bytes", "100663296");
	else if (make_cgroup(v2, "memory.max"))
		put("memory.max", "100663296"), put("memory.swap.max", "0");
	else
		SKIP_ROOT(NO_CGROUP);
	r = spawn(start_then_eat);
	if (r)
		return r;
	helper = sh->helper;
	sh->go = 1;
	CHECK(reap(vmm, &st));
	CHECK(WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL);
	/* the kernel kills both, in whichever order */
	CHECK(reap(helper, NULL) && mm_freed());
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

static const char *frozen(void)
{
	static const char *const v1[] = { "/sys/fs/cgroup/freezer", NULL };
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	const char *file, *on = "FROZEN", *off = "THAWED";
	char path[192];
	int i;

	if (make_cgroup(v1, file = "freezer.state"))
		;
	else if (make_cgroup(v2, file = "cgroup.freeze"))
		on = "1", off = "0";
	else
		SKIP_ROOT(NO_CGROUP);
	TRY(spawn(start));
	CHECK(join(sh->helper));
	for (i = 0; i < 5; i++) {
		CHECK(put(file, on));
		snprintf(path, sizeof(path), "%s/%s", sh->cgroup, *on == '1' ? "cgroup.events" : file);
		CHECK(UNTIL(deadline, strstr(slurp(path, 0), *on == '1' ? "frozen 1" : "FROZEN")));
		CHECK(put(file, off));
		CHECK(thaw(sh->helper));
	}
	/* The VMM dies while the helper is frozen: reaped all the same. */
	CHECK(put(file, on));
	CHECK(UNTIL(deadline, strstr(slurp(path, 0), *on == '1' ? "frozen 1" : "FROZEN")));
	CHECK(by_kill() && reap(vmm, NULL) && mm_held());
	CHECK(rmdir(sh->cgroup) && errno == EBUSY);
	CHECK(put(file, off));
	CHECK(gone(sh->helper));
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

static void start_in_cgroup(void) { MUST(join(getpid())); start(); }

/* As a supervisor does it whose unit has to be empty when the VMM is gone. */
static const char *other_cgroup(void)
{
	static const char *const roots[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified", NULL };
	char vmms[sizeof(sh->cgroup)], path[192];
	pid_t helper;
	FILE *f;

	if (!make_cgroup(roots, "cgroup.procs"))
		SKIP_ROOT(NO_CGROUP);
	TRY(spawn(start_in_cgroup));
	helper = sh->helper;
	snprintf(vmms, sizeof(vmms), "%.100s", sh->cgroup);
	strncat(sh->cgroup, "-teardown", sizeof(sh->cgroup) - strlen(sh->cgroup) - 1);
	CHECK(!mkdir(sh->cgroup, 0755) && join(helper));
	CHECK(freeze(helper));
	snprintf(path, sizeof(path), "%s/cgroup.kill", vmms);	/* Linux 5.14 */
	f = fopen(path, "w");
	CHECK(f ? fputs("1", f) >= 0 && !fclose(f) : by_kill());
	CHECK(reap(vmm, NULL) && mm_held());
	CHECK(UNTIL(deadline, !rmdir(vmms)));	/* empty, with the helper still at work */
	CHECK(state(helper) == 'T');
	CHECK(!signal_one(helper, SIGCONT) && gone(helper));
	CHECK(UNTIL(deadline, !rmdir(sh->cgroup)));
	return NULL;
}

static void start_without_memlock(void)
{
	struct rlimit none = { 0, 0 };

	if (!geteuid())
		become_nobody();
	MUST(!setrlimit(RLIMIT_MEMLOCK, &none));
	start();
}

static void start_where_mlock_kills(void)
{
	filter_one(__NR_mlock, KILL_PROCESS);
	start();
}

/* Its code and its stacks, where that is permitted and no filter need know the call. */
static const char *locks_its_memory(void)
{
	TRY(spawn(start));
	if (!prctl(PR_GET_SECCOMP))
		CHECK_INT(atoi(status(sh->helper, "VmLck")), >=, (long)(sizeof(atd_shared) >> 10));
	TRY(killed_asynchronously());
	TRY(spawn(start_without_memlock));
	CHECK_INT(atoi(status(sh->helper, "VmLck")), ==, 0);
	TRY(killed_asynchronously());
	TRY(spawn(start_where_mlock_kills));
	CHECK_INT(atoi(status(sh->helper, "VmLck")), ==, 0);
	return killed_asynchronously();
}

static void *map_and_unmap(void *arg)
{
	const size_t size = 64 << 20;
	char *p;

	(void)arg;
	while (!sh->go) {
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		MUST(p != MAP_FAILED && !munmap(p, size));
		sh->counter++;
	}
	return NULL;
}

static void start_beside_mappings(void)
{
	pthread_t t;
	int i;

	MUST(!pthread_create(&t, NULL, map_and_unmap, NULL));
	for (i = 0; i < effort(30) || sh->counter < 3; i++) {
		start();
		MUST_INT(async_teardown_stop(), ==, 0);
	}
	start();
	sh->go = 1;
	MUST(!pthread_join(t, NULL));
}

static const char *busy_mappings(void)
{
	TRY(spawn(start_beside_mappings));
	return killed_asynchronously();
}

static const struct test helper_tests[] = {
	{ "what_it_is", what_it_is, "the helper's name, session, parent and working directory" },
	{ "holds_nothing", holds_nothing, "holds no descriptor of the VMM's, even above RLIMIT_NOFILE" },
	{ "without_proc", without_proc, "holds none without /proc either" },
	{ "keeps_path_only", keeps_path_only, "keeps a descriptor of O_PATH" },
	{ "wait_loops", wait_loops, "wait and SIGCHLD never tell of the helper's end" },
	{ "oom", oom, "OOM kill in a control group: both gone" },
	{ "frozen", frozen, "frozen and thawed with its control group" },
	{ "other_cgroup", other_cgroup, "the helper in another control group: the VMM's is empty, killed and removed" },
	{ "helper_killed", helper_killed, "helper killed: VMM undisturbed, next start makes another" },
	{ "locks_its_memory", locks_its_memory, "its code and static object are locked in memory; not where a limit or a filter is against it" },
	{ "busy_mappings", busy_mappings, "start beside a thread that maps and unmaps large memory" },
	{ "signals", signals, "every other signal: stays" },
	{ "idle", idle, "idle for 10 s: not one wake-up; without pidfd, for 2 s: a few" },
	{ NULL, NULL, NULL }
};
