/*
 * filters.c - policies around the VMM that are there before start, and refuse, trap or kill
 * what start, stop or the helper call
 *
 * These are seccomp filters of the VMM's own.  Where SELinux, systemd or a container refuses
 * a call, a filter that answers with the same errno stands for it.  run.sh also refuses each
 * call by itself, through deny.c and refused(); here is what takes more than that.
 * The helper's own filter is in sandbox.c.
 *
 * A new case: a VMM that calls filter_one(__NR_call, ERRNO | EACCES), or TRAP, or KILL, and
 * then fails_with(error) or start(); plus its line in the table below.
 */
#include <ucontext.h>

/* The helper may be reaped by a thread that waits for everything. */
static void *wait_for_all(void *arg)
{
	(void)arg;
	for (;;)
		waitpid(-1, NULL, __WALL);
	return NULL;
}

static void start_beside_wait_loop(void)
{
	pthread_t t;
	int i;

	filter_one(__NR_setsid, KILL_PROCESS);
	MUST(!pthread_create(&t, NULL, wait_for_all, NULL));
	for (i = 0; i < effort(300); i++) {
		sh->result = async_teardown_start();
		if (sh->result != -ECHILD)
			MUST_INT(sh->result, ==, -EPERM);
	}
}

static const char *killed_beside_wait(void)
{
	if (before_5_16())
		SKIP("needs Linux 5.16");
	TRY(spawn(start_beside_wait_loop));
	return killed_synchronously();
}

/* As a sandbox does that answers calls by a handler. */
static void trap(unsigned nr)
{
	on_sigsys(answer_sigsys);
	filter_one(nr, TRAP);
}

static void start_where_clone_traps(void)
{
	trap(__NR_clone);
	MUST_INT(async_teardown_start(), <, 0);
	MUST_INT(sh->counter, ==, 1);
}

/* The handler leaves the call's number in the result's register, which is no error. */
static void start_where_ppoll_traps(void)
{
	trap(__NR_ppoll);
	MUST_INT(async_teardown_start(), <, 0);
	MUST_INT(sh->counter, >, 0);
}

static void start_where_setsid_traps(void)
{
	trap(__NR_setsid);
	fails_with(-EPERM);	/* the VMM's handler does not run in the helper */
	MUST_INT(sh->counter, ==, 0);
}

static const char *seccomp_traps(void)
{
	TRY(spawn(start_where_clone_traps));
	TRY(killed_synchronously());
	TRY(spawn(start_where_ppoll_traps));
	TRY(killed_synchronously());
	if (before_5_16())
		SKIP(OF_LINUX_5_16);
	TRY(spawn(start_where_setsid_traps));
	return killed_synchronously();
}

/*
 * What a filter installed before start has to allow.  The header lists the
 * same: every path, so that one list serves all kernels.
 */
static void start_under_exact_filter(void)
{
	static const unsigned listed[] = {
		/* in the VMM */
		__NR_rt_sigprocmask, __NR_getpid, __NR_wait4, __NR_clone, __NR_ppoll, __NR_kill,
		/* in the helper */
		__NR_setsid, ATD_NR_CLOSE_RANGE, __NR_unshare, __NR_openat, __NR_getdents64,
		__NR_close, __NR_chdir, __NR_prctl, ATD_NR_PIDFD_OPEN, __NR_rt_sigtimedwait,
		__NR_getppid, __NR_capget, __NR_capset, __NR_prlimit64, __NR_exit_group,
		/* in the thread between them */
		__NR_exit,
		/* with RAM */
		__NR_munmap, __NR_madvise, __NR_timer_create, __NR_timer_settime,
		/* with kept descriptors */
		__NR_fcntl,
		/* with several threads */
		__NR_pipe2,
		/* with capabilities in effect */
		__NR_read,
	};
	enum { N = sizeof(listed) / sizeof(listed[0]) };
	struct atd_insn insns[2 * N + 2] = { STMT(0x20, 0) };
	int i;

	for (i = 0; i < N; i++) {
		insns[1 + 2 * i] = (struct atd_insn)JEQ(listed[i], 0, 1);
		insns[2 + 2 * i] = (struct atd_insn)STMT(6, ALLOW);
	}
	insns[1 + 2 * N] = (struct atd_insn)STMT(6, KILL);
	filter(insns, 2 * N + 2);
	MUST_INT(async_teardown_ram(hold_memory, 1), ==, 0);
	for (i = 0; i < 3; i++) {
		sh->helper = async_teardown_start();
		sh->second = async_teardown_stop();
	}
	sh->helper = async_teardown_start();
	ready();
	for (;;)	/* in nothing that is not listed */
		atd_ppoll(0, 0, 0);
}

static const char *exact_filter(void)
{
	int helper;

	TRY(spawn(start_under_exact_filter));
	CHECK_INT(sh->second, ==, 0);
	CHECK_INT(sh->helper, >, 0);
	helper = sh->helper;
	if (status(helper, "Seccomp_filters")[0])
		CHECK_INT(atoi(status(helper, "Seccomp_filters")), >=, 2);
	return killed_asynchronously();
}

static void start_under_wrong_filter(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct atd_insn *insn = (struct atd_insn *)(uintptr_t)&atd_filter[1];
	char *at = (char *)((uintptr_t)insn & ~(page - 1));
	int i;

	MUST(!mprotect(at, 2 * page, PROT_READ | PROT_WRITE));
	*(volatile unsigned *)&insn->k ^= 1;	/* another architecture */
	for (i = 0; i < effort(50); i++)
		fails_with(-EPERM);
}

static const char *filter_is_tried(void)
{
	if (before_5_16())
		SKIP("needs Linux 5.16");
	TRY(spawn(start_under_wrong_filter));
	return killed_synchronously();
}

/* Answers rt_sigprocmask as sandboxes do that may never lose SIGSYS. */
static void answer_sigmask(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	char deep[4096];	/* some handlers are */

	(void)sig;
	(void)info;
	memset(deep, sh->counter, sizeof(deep));
	sh->counter += deep[17] == (char)sh->counter;
	sh->alive += getpid() != sh->target;
#ifdef __x86_64__
	uc->uc_mcontext.gregs[REG_RAX] = 0;
#elif defined(__aarch64__)
	uc->uc_mcontext.regs[0] = 0;
#endif
	if (sh->attempt) {
		sigfillset(&uc->uc_sigmask);
		sigdelset(&uc->uc_sigmask, SIGSYS);
	}
}

static int handler_blocks;

static void start_where_sigmask_traps(void)
{
	sh->target = getpid();
	sh->attempt = handler_blocks;
	on_sigsys(answer_sigmask);
	filter_one(__NR_rt_sigprocmask, TRAP);
	sh->result = async_teardown_start();
	/* what it has in the result's register is its matter */
	MUST_INT(sh->result, <, 0);
	MUST_INT(sh->counter, >, 0);
	MUST_INT(sh->alive, ==, 0);
	ready();
	for (;;)
		atd_ppoll(0, 0, 0);
}

#if defined(__x86_64__) || defined(__aarch64__)
/* Answers it as a handler has to: by the mask that sigreturn puts back.  Or not quite so. */
static enum { RIGHTLY, NOT_FOR_SIGSYS, WITHOUT_OLD, NOT_AT_ALL, EMULATIONS } emulation;

static void emulate_sigmask(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
#ifdef __x86_64__
	greg_t *const regs = uc->uc_mcontext.gregs, *const ret = &regs[REG_RAX];
	const long how = regs[REG_RDI];
	const uint64_t *set = (const uint64_t *)(uintptr_t)regs[REG_RSI];
	uint64_t *old = (uint64_t *)(uintptr_t)regs[REG_RDX];
#else
	unsigned long long *const regs = uc->uc_mcontext.regs, *const ret = regs;
	const long how = (long)regs[0];
	const uint64_t *set = (const uint64_t *)(uintptr_t)regs[1];
	uint64_t *old = (uint64_t *)(uintptr_t)regs[2];
#endif
	uint64_t mask, bits;

	(void)sig;
	(void)info;
	sh->counter++;
	*ret = 0;
	memcpy(&mask, &uc->uc_sigmask, sizeof(mask));
	if (old && emulation != WITHOUT_OLD && emulation != NOT_AT_ALL)
		*old = mask;
	if (!set || emulation == NOT_AT_ALL)
		return;
	bits = *set & ~(emulation == NOT_FOR_SIGSYS ? 1ULL << (SIGSYS - 1) : 0);
	mask = how == SIG_BLOCK ? mask | bits : how == SIG_UNBLOCK ? mask & ~bits : bits;
	memcpy(&uc->uc_sigmask, &mask, sizeof(mask));
}

static void start_where_sigmask_is_emulated(void)
{
	char before[32];
	sigset_t set;
	int i;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX);
	sigprocmask(SIG_SETMASK, &set, NULL);
	snprintf(before, sizeof(before), "%s", status(getpid(), "SigBlk"));
	on_sigsys(emulate_sigmask);
	filter_one(__NR_rt_sigprocmask, TRAP);
	for (i = 0; i < 3; i++) {
		MUST_INT(async_teardown_start(), ==, -EPERM);
		/* What it was only the handler can say. */
		MUST(emulation == WITHOUT_OLD || !strcmp(status(getpid(), "SigBlk"), before));
		MUST(childless());
	}
	MUST_INT(sh->counter, >, 0);
	ready();
	for (;;)
		atd_ppoll(0, 0, 0);
}

static const char *sigmask_emulated(void)
{
	if (before_5_16())
		SKIP("where the filter traps a process that start makes, this kernel kills the VMM");
	for (emulation = RIGHTLY; emulation < EMULATIONS; emulation++) {
		TRY(spawn(start_where_sigmask_is_emulated));
		TRY(killed_synchronously());
	}
	return NULL;
}
#else
static const char *sigmask_emulated(void) { SKIP("knows the registers only of x86-64 and aarch64"); }
#endif

/* The helper's first steps: whatever traps, no handler runs in it. */
static void start_where_first_prctl_traps(void)
{
	const struct atd_insn insns[] = {
		STMT(0x20, 0), JEQ(__NR_prctl, 0, 3),
		STMT(0x20, 16 + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0)), JEQ(PR_SET_PDEATHSIG, 0, 1),
		STMT(6, TRAP), STMT(6, ALLOW)
	};

	sh->target = getpid();
	on_sigsys(answer_sigmask);
	filter(insns, 6);
	fails_with(-EPERM);
	MUST_INT(sh->counter, ==, 0);
	MUST_INT(sh->alive, ==, 0);
}

static const char *sigmask_traps(void)
{
	if (!before_5_16()) {
		TRY(spawn(start_where_first_prctl_traps));
		TRY(killed_synchronously());
	}
	for (handler_blocks = 0; handler_blocks < 2; handler_blocks++) {
		TRY(spawn(start_where_sigmask_traps));
		TRY(killed_synchronously());
	}
	return NULL;
}

/*
 * Policies, a row each: who calls start, what is refused, and what comes out.  The answers
 * are what SELinux gives QEMU under libvirt (svirt_t: no setcap; elsewhere no getcap, no
 * setrlimit, no sigkill), what systemd's SystemCallFilter=~@privileged gives (no capset), and
 * these where there is no close_range or /proc.
 */
enum who { A_USER, ROOT, ROOT_WITHOUT_CAPS };
enum { NO_CORE = 1 };	/* the VMM's hard limit of core dumps is 0 */
#define SAYS(call, error) { __NR_##call, ERRNO | (error), ALWAYS, 0 }
#define NO_FILES { __NR_prlimit64, ERRNO | EACCES, ARG_1, RLIMIT_NOFILE }
#define NO_SETTING { __NR_prlimit64, ERRNO | EACCES, SETS, 0 }
#define NO_CLOSE_RANGE { ATD_NR_CLOSE_RANGE, ERRNO | EACCES, ALWAYS, 0 }
#define NO_PIDFD { ATD_NR_PIDFD_OPEN, ERRNO | EACCES, ALWAYS, 0 }

static const struct policy {
	enum who who;
	int started, stopped;	/* what start and stop return; started 0: a helper */
	struct answer refused[7];
	int vmm;
} policies[] = {
	{ A_USER, 0, 0, { SAYS(capset, EACCES) }, 0 },
	{ ROOT, -EACCES, 0, { SAYS(capset, EACCES) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, 0, { SAYS(capset, EACCES) }, 0 },
	{ A_USER, 0, 0, { SAYS(capset, EPERM) }, 0 },
	{ ROOT, -EPERM, 0, { SAYS(capset, EPERM) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, 0, { SAYS(capset, EPERM) }, 0 },

	{ A_USER, 0, 0, { SAYS(capget, EACCES) }, 0 },
	{ ROOT, 0, 0, { SAYS(capget, EACCES) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, 0, { SAYS(capget, EACCES) }, 0 },
	{ A_USER, 0, 0, { SAYS(capget, EACCES), SAYS(capset, EACCES) }, 0 },
	{ ROOT, -EACCES, 0, { SAYS(capget, EPERM), SAYS(capset, EACCES) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, 0, { SAYS(capget, EACCES), SAYS(capset, EACCES) }, 0 },
	/* neither says what there is to drop */
	{ A_USER, -EACCES, 0, { SAYS(capget, EACCES), SAYS(openat, ENOENT) }, 0 },
	{ ROOT, -EACCES, 0, { SAYS(capget, EACCES), SAYS(openat, ENOENT) }, 0 },
	{ A_USER, -EACCES, 0, { SAYS(capget, EACCES), SAYS(read, EIO) }, 0 },
	/* either does */
	{ A_USER, 0, 0, { SAYS(capset, EACCES), SAYS(openat, EACCES) }, 0 },
	{ ROOT, 0, 0, { SAYS(openat, EACCES) }, 0 },
	{ ROOT, 0, 0, { SAYS(read, EIO) }, 0 },

	{ A_USER, -EACCES, 0, { SAYS(prlimit64, EACCES) }, 0 },
	{ ROOT, -EACCES, 0, { NO_SETTING }, 0 },
	{ A_USER, 0, 0, { NO_SETTING }, NO_CORE },
	{ ROOT, 0, 0, { NO_SETTING }, NO_CORE },
	{ A_USER, 0, 0, { NO_FILES }, 0 },
	{ ROOT, 0, 0, { NO_FILES }, 0 },
	{ A_USER, 0, 0, { SAYS(chdir, EACCES) }, 0 },
	{ A_USER, -EACCES, 0, { SAYS(setsid, EACCES) }, 0 },
	{ A_USER, -EPERM, 0, { SAYS(clone, EPERM) }, 0 },

	{ A_USER, 0, 0, { NO_CLOSE_RANGE, SAYS(openat, EACCES) }, 0 },
	{ ROOT, 0, 0, { NO_CLOSE_RANGE, SAYS(openat, EACCES) }, 0 },
	{ A_USER, 0, 0, { NO_CLOSE_RANGE, SAYS(openat, EACCES), SAYS(capset, EACCES) }, 0 },
	{ A_USER, -EACCES, 0, { NO_CLOSE_RANGE, SAYS(openat, EACCES), SAYS(capget, EACCES) }, 0 },
	{ A_USER, -EACCES, 0, { NO_CLOSE_RANGE, SAYS(unshare, EACCES) }, 0 },

	{ A_USER, 0, -EACCES, { SAYS(kill, EACCES) }, 0 },
	{ ROOT, 0, -EACCES, { SAYS(kill, EACCES) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, -EPERM, { SAYS(kill, EPERM) }, 0 },
	/* the error is that of what start was refused */
	{ A_USER, -EPERM, 0, { SAYS(kill, EACCES), SAYS(setsid, EPERM) }, 0 },
	{ ROOT, -EPERM, 0, { SAYS(kill, EACCES), SAYS(capset, EPERM) }, 0 },

	/* all that can be done without, and at once */
	{ A_USER, 0, -EACCES, { SAYS(capget, EACCES), SAYS(capset, EACCES), NO_FILES,
		SAYS(chdir, EACCES), NO_CLOSE_RANGE, NO_PIDFD, SAYS(kill, EACCES) }, 0 },
	{ ROOT_WITHOUT_CAPS, 0, -EACCES, { SAYS(capget, EACCES), SAYS(capset, EACCES), NO_FILES,
		SAYS(chdir, EACCES), NO_CLOSE_RANGE, NO_PIDFD, SAYS(kill, EACCES) }, NO_CORE },
};

static const struct policy *policy;

static void start_under_policy(void)
{
	static const struct atd_cap_data none[2];
	struct atd_cap_header header = { ATD_CAPABILITY_VERSION_3, 0 };
	struct rlimit no_core = { 0, 0 };
	int i;

	if (policy->vmm & NO_CORE)
		MUST(!setrlimit(RLIMIT_CORE, &no_core));
	if (policy->who == A_USER && !geteuid()) {
		become_nobody();
		MUST(!prctl(PR_SET_DUMPABLE, 1));	/* as after an execve: it may look into its /proc */
	}
	if (policy->who == ROOT_WITHOUT_CAPS)
		MUST_INT(atd_syscall(__NR_capset, atd_arg(&header), atd_arg(none), 0, 0, 0), ==, 0);
	MUST(policy->who == ROOT || !has_capabilities(getpid()));
	make_told_ram(1 << 20);
	for (i = 0; i < 7 && policy->refused[i].action; i++)
		;
	filter_calls(policy->refused, i);
	if (policy->started) {
		for (i = 0; i < 4; i++)	/* one that has failed is seen before it ends, or after */
			fails_with(policy->started);
		return;
	}
	start();
	ready();
	await_go();
	sh->second = async_teardown_stop();
	sh->passed = 1;
	while (sh->go == 1)
		nap();
	sh->helper = async_teardown_start();
	sh->passed = 2;
}

/* The helper has nothing in effect, and what was permitted still is; see same_uid_peeks. */
static const char *drops_capabilities(pid_t helper)
{
	char permitted[32];

	CHECK(!has_capabilities(helper));
	snprintf(permitted, sizeof(permitted), "%s", status(vmm, "CapPrm"));
	CHECK(*permitted && !strcmp(status(helper, "CapPrm"), permitted));
	return NULL;
}

static const char *under_policy(void)
{
	pid_t helper;

	TRY(spawn(start_under_policy));
	if (policy->started) {
		CHECK_INT(child_of(vmm), ==, 0);
		return killed_synchronously();
	}
	helper = sh->helper;
	TRY(drops_capabilities(helper));
	sh->go = 1;
	CHECK(UNTIL(deadline, sh->passed));
	CHECK_INT(sh->second, ==, policy->stopped);
	if (policy->stopped) {
		CHECK(asleep(helper));
		CHECK_INT(child_of(vmm), ==, helper);
	} else
		CHECK_INT(child_of(vmm), ==, 0);
	sh->go = 2;
	CHECK(UNTIL(deadline, sh->passed == 2));
	CHECK_INT(sh->helper, >, 0);
	if (policy->stopped)
		CHECK_INT(sh->helper, ==, helper);
	return killed_and_gone();
}

static const char *policies_table(void)
{
	const int n = sizeof(policies) / sizeof(policies[0]);
	const char *r;
	int skipped = 0, failed = 0;

	for (policy = policies; policy < policies + n; policy++) {
		if (policy->who != A_USER && (geteuid() || !has_capabilities(getpid()))) {
			skipped++;
			continue;
		}
		r = under_policy();
		if (r) {
			printf("# policies[%d]: %s\n", (int)(policy - policies), r);
			failed++;
			by_kill();
			CHECK(UNTIL(deadline, waitpid(-1, NULL, WNOHANG | __WALL) < 0));
		}
	}
	CHECK_INT(failed, ==, 0);
	if (skipped)
		SKIP_ROOT("needs capabilities; the rest was tried");
	return NULL;
}

/*
 * Each call of start's, refused by itself in each way.  A row says when it is made and when
 * it is needed, each if one of these holds; what start returns where it is needed and
 * answered with EPERM; and what comes of a filter that kills for it.
 */
enum {
	ANYWAY = 1,
	TOLD = 2,		/* of RAM and kept descriptors */
	OLD_FILES = 4,		/* no close_range */
	OLD_WATCH = 8,		/* no pidfd_open */
	CAPS = 16,		/* there is a capability to drop */
	THREADS = 32,		/* the helper has several */
};
enum { DIES = 1, FAILS = 2, STARTS = 4 };
static const char *const outcomes[] = {
	"hangs or leaves something", "the VMM dies", "start fails", "the VMM dies or start fails", "there is a helper",
	"there is a helper or the VMM dies"
};

static const struct call {
	const char *name;
	unsigned nr;
	int when;
	unsigned value;
	int made, needed, error, killed;
} calls[] = {
#define CALL(name) #name, __NR_##name, ALWAYS, 0
#ifdef __s390x__
#define CLONE(what, flags) "clone of " what, __NR_clone, ARG_1, flags
#else
#define CLONE(what, flags) "clone of " what, __NR_clone, ARG_0, flags
#endif
#define PRCTL(option) "prctl(" #option ")", __NR_prctl, ARG_0, option
	/* made by the VMM's threads */
	{ CALL(getpid), ANYWAY, ANYWAY, -EPERM, DIES },
	{ CALL(rt_sigprocmask), ANYWAY, ANYWAY, -EPERM, DIES },
	{ CALL(wait4), ANYWAY, ANYWAY, -EPERM, DIES },
	{ PRCTL(PR_GET_TIMERSLACK), ANYWAY, ANYWAY, -EPERM, DIES },
	{ PRCTL(PR_SET_TIMERSLACK), ANYWAY, ANYWAY, -EPERM, DIES },
	{ PRCTL(PR_GET_SECCOMP), ANYWAY, 0, 0, DIES },
	{ CLONE("a process that tries exit", 0x4500), ANYWAY, ANYWAY, -EPERM, DIES },
	{ CLONE("the thread in between", 0x14d00), ANYWAY, ANYWAY, -EPERM, DIES },
	{ CLONE("the helper", 0x200500), ANYWAY, ANYWAY, -EPERM, DIES | FAILS },	/* or just that thread */
	{ CALL(ppoll), ANYWAY, ANYWAY, -EPERM, DIES | FAILS },	/* by which thread first? */
	{ CALL(kill), ANYWAY, 0, 0, DIES },
	/* tried in a process first */
	{ CALL(exit), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ PRCTL(PR_SET_PDEATHSIG), ANYWAY, ANYWAY, -EPERM, FAILS },
	/* in the helper */
	{ CALL(prlimit64), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ "prlimit64(RLIMIT_NOFILE)", __NR_prlimit64, ARG_1, RLIMIT_NOFILE, ANYWAY, 0, 0, FAILS },
	{ CALL(setsid), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ "close_range", ATD_NR_CLOSE_RANGE, ALWAYS, 0, ANYWAY, 0, 0, FAILS },
	{ "unshare(CLONE_FILES)", __NR_unshare, ARG_0, CLONE_FILES, OLD_FILES, OLD_FILES, -EPERM, FAILS },
	{ CALL(openat), OLD_FILES | CAPS, 0, 0, FAILS },
	{ CALL(getdents64), OLD_FILES, 0, 0, FAILS },
	{ CALL(read), CAPS, 0, 0, FAILS },
	{ CALL(close), TOLD | OLD_FILES | CAPS, TOLD | OLD_FILES, -EPERM, FAILS },
	{ CALL(fcntl), TOLD, 0, 0, FAILS },
	{ CALL(chdir), ANYWAY, 0, 0, FAILS },
	{ PRCTL(PR_SET_NAME), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ "pidfd_open", ATD_NR_PIDFD_OPEN, ALWAYS, 0, ANYWAY, 0, 0, FAILS },
	{ CALL(rt_sigtimedwait), OLD_WATCH, OLD_WATCH, -EPERM, FAILS },
	{ "unshare(CLONE_VM)", __NR_unshare, ARG_0, CLONE_VM, TOLD | OLD_WATCH, 0, 0, FAILS },
	{ CALL(munmap), TOLD, 0, 0, STARTS },
	{ CALL(madvise), TOLD, 0, 0, FAILS },
	{ CALL(timer_create), TOLD, 0, 0, FAILS },
	{ CALL(timer_settime), TOLD, 0, 0, FAILS },
	{ CALL(capget), ANYWAY, 0, 0, FAILS },
	{ CALL(capset), CAPS, CAPS, -EPERM, FAILS },
	{ PRCTL(PR_SET_NO_NEW_PRIVS), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ CLONE("the helper's threads", 0x10f00), THREADS, THREADS, -EPERM, FAILS },
	{ CALL(pipe2), THREADS, THREADS, -EPERM, FAILS },
	{ PRCTL(PR_SET_SECCOMP), ANYWAY, ANYWAY, -EPERM, FAILS },
	{ CALL(getppid), ANYWAY, ANYWAY, -ESRCH, FAILS },
	{ CALL(exit_group), ANYWAY, 0, 0, STARTS },
};

static const struct { const char *name; unsigned action; } actions[] = {
	{ "EPERM", ERRNO | EPERM }, { "KILL_THREAD", KILL }, { "KILL_PROCESS", KILL_PROCESS }, { "TRAP", TRAP },
};

static struct answer answer;
static int told;

static void start_under_answer(void)
{
	int fd[2];

	if (told) {
		MUST(!pipe(fd));
		make_told_ram(1 << 20);
		MUST_INT(async_teardown_keep(&fd[1], 1), ==, 0);
	}
	filter_calls(&answer, 1);
	sh->result = async_teardown_start();
	ready();
	for (;;)	/* in nothing that start needs too */
		nap();
}

/* What came of it; 0 if something hangs or is left. */
static int outcome(void)
{
	const char *r = spawn(start_under_answer);
	int came = 0, left;

	if (r)
		came = strstr(r, "the VMM died") ? DIES : 0;
	else if (sh->result)
		came = sh->result > 0 ? STARTS : FAILS;
	left = came == FAILS && child_of(vmm);
	by_kill();
	/* also whoever is left */
	return UNTIL(deadline, waitpid(-1, NULL, WNOHANG | __WALL) < 0) && mm_freed() && !left ? came : 0;
}

/* Which of the above hold here. */
static int conditions(int pidfd)
{
	return ANYWAY | (told ? TOLD : 0) | (has_capabilities(getpid()) ? CAPS : 0) |
		(syscall(ATD_NR_CLOSE_RANGE, 1 << 30, 1 << 30, 0) ? OLD_FILES : 0) |
		(pidfd ? 0 : OLD_WATCH) | (told && pidfd && ASYNC_TEARDOWN_THREADS > 1 ? THREADS : 0);
}

static const char *call_by_call(void)
{
	const int n_actions = sizeof(actions) / sizeof(actions[0]);
	const struct call *c;
	int pidfd, holds, a, wanted, came, error, failed = 0;

	TRY(spawn(start));
	pidfd = has_pidfd(sh->helper);
	TRY(killed_and_gone());
	for (told = 0; told < 2; told++)
		for (holds = conditions(pidfd), c = calls; c < calls + sizeof(calls) / sizeof(calls[0]); c++)
			for (a = 0; a < n_actions; a++) {
				answer = (struct answer){ c->nr, actions[a].action, c->when, c->value };
				error = -EPERM;
				wanted = STARTS;
				if (actions[a].action != (ERRNO | EPERM) && c->made & holds)
					wanted = c->killed | (before_5_16() ? DIES : 0);
				else if (c->needed & holds) {
					wanted = FAILS;
					error = c->error;
				}
				came = outcome();
				if (came & wanted && (came != FAILS || sh->result == error))
					continue;
				printf("# %s, %s, told %d: %s (start: %d), not %s\n", c->name, actions[a].name,
					told, outcomes[came], sh->result, outcomes[wanted]);
				failed++;
			}
	CHECK_INT(failed, ==, 0);
	return NULL;
}

static void start_without_naps(void)
{
	filter_one(__NR_ppoll, ERRNO | EPERM);
	ready();
	await_go();
	sh->result = async_teardown_start();
	sh->passed = 1;
}

/* Where whatever start makes cannot be reaped at once: while it is traced, only by its tracer. */
static const char *ppoll_refused(void)
{
	siginfo_t stop;

	TRY(spawn(start_without_naps));
	if (ptrace(PTRACE_SEIZE, vmm, 0, PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK)) {
		TRY(killed_synchronously());
		SKIP(NO_TRACING);
	}
	sh->go = 1;
	CHECK(UNTIL(deadline, ({
		stop.si_pid = 0;
		if (!waitid(P_ALL, 0, &stop, WSTOPPED | WNOHANG | __WALL) && stop.si_pid)
			ptrace(PTRACE_CONT, stop.si_pid, 0, 0);
		sh->passed;
	})));
	CHECK_INT(sh->result, ==, -EPERM);
	CHECK_INT(child_of(vmm), ==, 0);
	return killed_synchronously();
}

/* What the helper is told at start may be forgotten by the time it is needed. */
static void start_and_forget(void)
{
	make_ram(1 << 20);
	MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	filter_one(__NR_exit_group, KILL);
	start();
	MUST_INT(async_teardown_ram(ram, 0), ==, 0);
}

static const char *exit_group_kills(void)
{
	TRY(spawn(start_and_forget));
	CHECK(by_kill() && reap(vmm, NULL) && reap(sh->helper, NULL) && mm_freed());
	return NULL;
}

/*
 * A munmap that is refused is refused for each page of the address space.  The helper's
 * calls are counted by tracing it, from the VMM's end to its own.
 */
enum { FEW_CALLS = 10000 };	/* naps, mostly */
static int refusal;

static void start_where_munmap_is_refused(void)
{
	make_told_ram(1 << 20);
	filter_one(__NR_munmap, ERRNO | (unsigned)refusal);
	start();
}

static const char *calls_to_the_end(pid_t helper)
{
	int st, stops;

	if (ptrace(PTRACE_SEIZE, helper, 0, PTRACE_O_TRACESYSGOOD) || ptrace(PTRACE_INTERRUPT, helper, 0, 0)) {
		TRY(killed_and_gone());
		SKIP(NO_TRACING);
	}
	CHECK(reap(helper, &st) && WIFSTOPPED(st));
	CHECK(by_kill() && reap(vmm, NULL));
	for (stops = 0; WIFSTOPPED(st); stops++) {
		CHECK_INT(stops, <, 2 * FEW_CALLS);	/* at its entry and at its end */
		CHECK(!ptrace(PTRACE_SYSCALL, helper, 0, 0));
		CHECK(reap(helper, &st));
	}
	CHECK_INT(st, ==, 0);
	CHECK(mm_freed());
	return NULL;
}

static const char *munmap_refused(void)
{
	static const int refusals[] = { EPERM, EINVAL, ENOSYS };
	int i;

	for (i = 0; i < 3; i++) {
		refusal = refusals[i];
		TRY(spawn(start_where_munmap_is_refused));
		TRY(calls_to_the_end(sh->helper));
	}
	return NULL;
}

static const struct test filters_tests[] = {
	{ "killed_beside_wait", killed_beside_wait, "-EPERM or -ECHILD where a filter kills the helper, and another thread reaps all children" },
	{ "seccomp_traps", seccomp_traps, "a filter that answers by SIGSYS: the VMM lives" },
	{ "exact_filter", exact_filter, "start and stop under a filter of just the listed calls" },
	{ "filter_is_tried", filter_is_tried, "-EPERM if the filter would kill its first call" },
	{ "sigmask_traps", sigmask_traps, "-EPERM where a handler answers rt_sigprocmask; it never runs in the helper" },
	{ "sigmask_emulated", sigmask_emulated, "-EPERM where a handler emulates rt_sigprocmask, rightly or not; the mask is as before" },
	{ "policies", policies_table, "what start and stop say where a policy refuses capabilities, limits, files, kill" },
	{ "call_by_call", call_by_call, "each of start's calls refused or killed for: no hang, nothing left" },
	{ "ppoll_refused", ppoll_refused, "-EPERM where a filter refuses ppoll, even if nothing could be reaped at once: no child left" },
	{ "exit_group_kills", exit_group_kills, "a filter that kills one thread for exit_group: none of the others stays" },
	{ "munmap_refused", munmap_refused, "a filter that answers munmap with an errno: the helper does not try page by page" },
	{ NULL, NULL, NULL }
};
