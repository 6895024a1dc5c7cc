/*
 * starting.c - start and stop that succeed, and what they leave alone
 *
 * Called often, by several threads at once, from a real-time thread, while signals, stops
 * or an allocating heap come in between, or killed halfway.  Left alone: errno, signal mask
 * and handlers, descriptors, timer slack, other children.  Errors are in failing.c, those by
 * seccomp filters in filters.c; fork, vfork and exec in forking.c.
 *
 * A new case: a VMM that calls start or stop, then killed_asynchronously() if it has a
 * helper or killed_synchronously() if not; plus its line in the table below.
 */

static void compare_around_start(void)
{
	unsigned char mask[2][128];
	struct sigaction act[2];
	sigset_t set;
	long files = fd_map();
	int i;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX);
	sigprocmask(SIG_SETMASK, &set, NULL);
	for (i = 0; i < 3; i++) {
		memset(mask, 0, sizeof(mask));
		atd_syscall(__NR_rt_sigprocmask, 0, 0, atd_arg(mask[0]), ATD_SIGSET_BYTES, 0);
		sigaction(SIGHUP, NULL, &act[0]);
		errno = 77;
		if (i == 0)
			start();
		else
			MUST_INT(async_teardown_stop(), ==, 0);
		MUST_INT(errno, ==, 77);
		atd_syscall(__NR_rt_sigprocmask, 0, 0, atd_arg(mask[1]), ATD_SIGSET_BYTES, 0);
		sigaction(SIGHUP, NULL, &act[1]);
		MUST(!memcmp(mask[0], mask[1], sizeof(mask[0])) && fd_map() == files);
		MUST(act[0].sa_handler == act[1].sa_handler);
	}
}

static void start_with_signals_pending(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	MUST(!kill(getpid(), SIGTERM) && !kill(getpid(), SIGSYS));
	start();
	MUST_INT(async_teardown_stop(), ==, 0);
	start();
}

static const char *leaves_caller_alone(void)
{
	TRY(spawn(compare_around_start));
	TRY(killed_synchronously());
	TRY(spawn(start_with_signals_pending));
	return killed_asynchronously();
}

static void start_and_stop_often(void)
{
	long before = 0;
	int i, ret;

	MUST_INT(async_teardown_stop(), ==, 0);
	for (i = 0; i < effort(250); i++) {
		ret = async_teardown_start();
		MUST_INT(ret, >, 0);
		MUST_INT(async_teardown_start(), ==, ret);
		MUST_INT(async_teardown_stop(), ==, 0);
		MUST_INT(async_teardown_stop(), ==, 0);
		MUST(signal_one(ret, 0) < 0 && errno == ESRCH);
		if (i == 0)
			before = rss_kib(getpid());
	}
	MUST_INT(rss_kib(getpid()), <=, before + 512);	/* a page each would be 1000 */
	MUST(childless());
}

static const char *start_stop(void)
{
	int i;

	for (i = 0; i < 4; i++) {	/* each with a deadline of its own */
		TRY(spawn(start_and_stop_often));
		TRY(killed_synchronously());
	}
	return NULL;
}

static pthread_barrier_t barrier;
static void *start_at_once(void *arg)
{
	pthread_barrier_wait(&barrier);
	*(int *)arg = async_teardown_start();
	return NULL;
}

static void start_in_all_threads(void)
{
	enum { N = 8 };
	pthread_t t[N];
	int pid[N], i, round;

	pthread_barrier_init(&barrier, NULL, N);
	for (round = 0; round < effort(100); round++) {
		for (i = 0; i < N; i++)
			MUST(!pthread_create(&t[i], NULL, start_at_once, &pid[i]));
		for (i = 0; i < N; i++)
			MUST(!pthread_join(t[i], NULL));
		for (i = 0; i < N; i++) {
			MUST_INT(pid[i], >, 0);
			MUST_INT(pid[i], ==, pid[0]);
		}
		MUST_INT(async_teardown_stop(), ==, 0);
		MUST(childless());
	}
}

static const char *two_threads_at_once(void)
{
	TRY(spawn(start_in_all_threads));
	return killed_synchronously();
}

static void *churn(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	void *p[64] = { NULL };

	while (!sh->go) {
		seed = seed * 1103515245 + 12345;
		free(p[seed >> 16 & 63]);
		p[seed >> 16 & 63] = malloc(seed >> 20);
		if (++sh->alive % 512 == 0)
			nap();		/* leave the helpers of all tests a CPU */
	}
	return NULL;
}

static void start_beside_churning_heap(void)
{
	pthread_t t[4];
	int i, before;

	for (i = 0; i < 4; i++)
		MUST(!pthread_create(&t[i], NULL, churn, (void *)(uintptr_t)(i + 1)));
	for (i = 0; i < effort(200); i++) {
		errno = 77;
		MUST_INT(async_teardown_start(), >, 0);
		MUST_INT(errno, ==, 77);
		free(malloc((size_t)i));
		MUST_INT(async_teardown_stop(), ==, 0);
		MUST_INT(errno, ==, 77);
	}
	before = sh->alive;
	MUST(UNTIL(deadline, sh->alive > before + 10000));
	sh->go = 1;
	for (i = 0; i < 4; i++)
		MUST(!pthread_join(t[i], NULL));
	start();
}

static const char *churning_heap(void)
{
	int i;

	for (i = 0; i < 5; i++) {	/* each with a deadline of its own */
		TRY(spawn(start_beside_churning_heap));
		TRY(killed_asynchronously());
	}
	return NULL;
}

/* On one CPU the helper runs only when its caller sleeps. */
static void start_in_real_time(void)
{
	struct sched_param param = { .sched_priority = 1 };
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	MUST(!sched_setaffinity(0, sizeof(one), &one));
	if (syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &param)) {	/* musl has none */
		sh->second = 1;
		return;
	}
	start();
	MUST_INT(async_teardown_stop(), ==, 0);
	filter_one(__NR_ppoll, ERRNO | EPERM);
	fails_with(-EPERM);
}

static const char *real_time(void)
{
	TRY(spawn(start_in_real_time));
	TRY(killed_synchronously());
	if (sh->second)
		SKIP_ROOT("no real-time scheduling: see cpu.rt_runtime_us; a container needs CAP_SYS_NICE");
	return NULL;
}

static void start_stop_in_group(void)
{
	int i;

	MUST(!setpgid(0, 0));
	ready();
	for (i = 0; !sh->go; i++) {
		MUST_INT(async_teardown_start(), >, 0);
		MUST_INT(async_teardown_stop(), ==, 0);
		sh->alive = i;
	}
	start();
	sh->passed = 1;
}

static const char *group_stops(void)
{
	int i, before;

	TRY(spawn(start_stop_in_group));
	for (i = 0; i < effort(1000); i++) {
		CHECK(vmm > 1 && !kill(-vmm, SIGSTOP));
		/* D: it waits for the thread that makes the helper, which has stopped */
		CHECK(UNTIL(deadline, strchr("TD", state(vmm))));
		CHECK(!kill(-vmm, SIGCONT));
	}
	before = sh->alive;
	CHECK(UNTIL(deadline, sh->alive > before + 1));
	sh->go = 1;
	CHECK(UNTIL(deadline, sh->passed));
	return killed_asynchronously();
}

static void start_with_slack(void)
{
	const unsigned long slack = sizeof(long) == 8 ? 2000000000UL * 1800 : 2000000000UL;
	int i;

	MUST(!prctl(PR_SET_TIMERSLACK, slack, 0, 0, 0));
	for (i = effort(100); i-- > 0; ) {
		start();
		MUST_INT(syscall(SYS_prctl, PR_GET_TIMERSLACK), ==, (long)slack);
		if (i)	/* not by stop, which may sleep, for as long as the slack says */
			MUST(!signal_one(sh->helper, SIGKILL) && waitpid(sh->helper, NULL, __WALL) == sh->helper);
	}
}

static const char *timer_slack(void)
{
	TRY(spawn(start_with_slack));
	return killed_and_gone();
}

static void *interrupt_often(void *arg)
{
	const pid_t *tid = arg;

	while (!sh->go)
		syscall(SYS_tgkill, getpid(), *tid, SIGSYS);
	return NULL;
}

static void start_stop_interrupted(void)
{
	pid_t tid = (pid_t)syscall(SYS_gettid);
	pthread_t t;
	int i, ret;

	on_sigsys(answer_sigsys);
	MUST(!pthread_create(&t, NULL, interrupt_often, &tid));
	MUST(UNTIL(deadline, sh->counter));
	for (i = 0; i < effort(300); i++) {
		/* On a busy machine a helper may wait for a CPU to die on longer than
		 * stop does. */
		MUST_INT(async_teardown_start(), >, 0);
		UNTIL(deadline, (ret = async_teardown_stop()) == 0);
		MUST_INT(ret, ==, 0);
		MUST(childless());
	}
	sh->go = 1;
	MUST(!pthread_join(t, NULL));
	start();
}

static const char *interrupted(void)
{
	TRY(spawn(start_stop_interrupted));
	return killed_asynchronously();
}

static void start_and_unshare(void)
{
	int i;

	for (i = 0; i < effort(1000); i++) {
		MUST_INT(async_teardown_start(), >, 0);
		MUST(!unshare(CLONE_THREAD));	/* EINVAL if there is another thread */
		MUST_INT(async_teardown_stop(), ==, 0);
	}
}

static const char *no_thread_left(void)
{
	TRY(spawn(start_and_unshare));
	return killed_synchronously();
}

static int clone_other(void *arg) { (void)arg; for (;;) pause(); return 0; }

static void stop_after_reuse(void)
{
	static char stack[65536];
	pid_t other;

	/* The VMM's own loop reaps a helper that was killed, and its PID comes to be
	 * that of another child without an exit signal. */
	sh->second = !kill_clears();
	if (sh->second) {
		start();
		return;
	}
	other = clone(clone_other, stack + sizeof(stack), 0, NULL);
	MUST_INT(other, >, 0);
	atd_shared.pid = other;
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST(!signal_one(other, 0) && state(other) != 'Z');
	start();	/* at once: it has been forgotten */
	MUST(!signal_one(other, SIGKILL) && waitpid(other, NULL, __WALL) == other);
}

static const char *pid_reused(void)
{
	TRY(spawn(stop_after_reuse));
	TRY(killed_asynchronously());
	if (sh->second)
		SKIP("this kernel does not clear the word of a helper that is killed, so stop cannot know");
	return NULL;
}

static void start_and_stop_with_ram(void)
{
	make_told_ram(1 << 20);
	ready();
	for (;;) {
		async_teardown_start();
		async_teardown_stop();
	}
}

static const char *killed_in_start(void)
{
	int i;

	for (i = 0; i < effort(200); i++) {
		TRY(spawn(start_and_stop_with_ram));
		usleep((unsigned)(i * 61 % 2000));
		CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
		CHECK(UNTIL(deadline, childless()));
	}
	return NULL;
}

/* A loop that gives the lock back only to take it again, until all others are through. */
enum { CALLERS = 2, CALLS = 25, ROUNDS = 2 /* of the loop for each call */ };
static int callers_done;

static void *start_stop_in_loop(void *arg)
{
	int *rounds = arg;

	while (__atomic_load_n(&callers_done, __ATOMIC_ACQUIRE) < CALLERS && *rounds < CALLERS * CALLS * ROUNDS) {
		MUST_INT(async_teardown_start(), >, 0);
		MUST_INT(async_teardown_stop(), ==, 0);
		++*rounds;
	}
	return NULL;
}

static void *call_beside(void *arg)
{
	const int stops = arg != NULL;
	int i;

	for (i = 0; i < CALLS; i++)
		if (stops)
			MUST_INT(async_teardown_stop(), ==, 0);
		else
			MUST_INT(async_teardown_start(), >, 0);
	__atomic_add_fetch(&callers_done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void start_stop_beside_loop(void)
{
	pthread_t loop, t[CALLERS];
	int rounds = 0, i;

	/* From now on the lock is always taken by somebody. */
	MUST(!pthread_create(&loop, NULL, start_stop_in_loop, &rounds));
	MUST(UNTIL(deadline, __atomic_load_n(&rounds, __ATOMIC_RELAXED) > 0));
	for (i = 0; i < CALLERS; i++)
		MUST(!pthread_create(&t[i], NULL, call_beside, i ? &t[i] : NULL));
	MUST(!pthread_join(loop, NULL));
	MUST_INT(rounds, <, CALLERS * CALLS * ROUNDS);
	for (i = 0; i < CALLERS; i++)
		MUST(!pthread_join(t[i], NULL));
	MUST_INT(async_teardown_stop(), ==, 0);
}

static const char *lock_is_fair(void)
{
	TRY(spawn(start_stop_beside_loop));
	return killed_synchronously();
}

static const struct test starting_tests[] = {
	{ "leaves_caller_alone", leaves_caller_alone, "errno, signal mask, dispositions, descriptors are the caller's own" },
	{ "start_stop", start_stop, "a thousand starts and stops leave nothing" },
	{ "two_threads_at_once", two_threads_at_once, "eight threads at once get the one helper" },
	{ "lock_is_fair", lock_is_fair, "a thread that starts and stops in a loop lets others through" },
	{ "real_time", real_time, "from a real-time thread on one CPU, also where a filter refuses ppoll" },
	{ "churning_heap", churning_heap, "a thousand starts beside threads that malloc and free" },
	{ "group_stops", group_stops, "start while the process group is stopped and continued, hundreds of times" },
	{ "timer_slack", timer_slack, "a timer slack of an hour delays neither start nor the helper" },
	{ "interrupted", interrupted, "start and stop while a handler of SIGSYS interrupts them" },
	{ "no_thread_left", no_thread_left, "the thread that makes the helper is gone when start returns" },
	{ "pid_reused", pid_reused, "stop does not kill another child that has the helper's PID" },
	{ "killed_in_start", killed_in_start, "killed anywhere in start and stop, hundreds of times: nothing left" },
	{ NULL, NULL, NULL }
};
