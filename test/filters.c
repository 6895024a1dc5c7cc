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

static void start_where_clone_is_refused(void)
{
	filter_one(__NR_clone, ERRNO | EPERM);
	fails_with(-EPERM);
}

static void start_where_setsid_kills(void)
{
	filter_one(__NR_setsid, KILL);
	fails_with(-EPERM);
}

static const char *seccomp_refuses(void)
{
	TRY(spawn(start_where_clone_is_refused));
	TRY(killed_synchronously());
	if (before_5_16())
		SKIP("where the filter kills the helper, this kernel kills the VMM; the rest was tried");
	TRY(spawn(start_where_setsid_kills));
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
	if (before_5_16())
		SKIP("where the filter traps the helper, this kernel kills the VMM; the rest was tried");
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
		SKIP("this kernel kills the VMM then");
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

static const struct test filters_tests[] = {
	{ "seccomp_refuses", seccomp_refuses, "-EPERM where a filter refuses clone or kills the helper" },
	{ "seccomp_traps", seccomp_traps, "a filter that answers by SIGSYS: the VMM lives" },
	{ "exact_filter", exact_filter, "start and stop under a filter of just the listed calls" },
	{ "filter_is_tried", filter_is_tried, "-EPERM if the filter would kill its first call" },
	{ "sigmask_traps", sigmask_traps, "-EPERM where a handler answers rt_sigprocmask; it never runs in the helper" },
	{ NULL, NULL, NULL }
};
