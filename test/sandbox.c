/*
 * sandbox.c - privileges: what the helper has none of, and what the VMM may give up
 *
 * The helper's capabilities, no_new_privs, core limit and seccomp filter; what an attacker
 * who has taken over the VMM gets out of the helper; who may read memory through it.
 * A VMM that calls setuid, chroot or ioperm after start.  Policies that are there before
 * start are in filters.c.
 *
 * A new case: in the way of helper.c.  A call that the helper must not make is one more case of evil().
 */
#include <sys/ptrace.h>

/* From the capabilities to the filters. */
static const char *privileges(void)
{
	char *from = strstr(slurp("/proc/%d/status", getpid()), "CapInh");
	char *to = strstr(from, "Speculation");		/* Linux 4.17 */

	if (!to)
		to = strstr(from, "Cpus_allowed");
	*to = 0;
	return from;
}

static void start_sandboxed(void)
{
	char before[4096];

	MUST_INT(prctl(PR_SET_DUMPABLE, 1), ==, 0);
	strcpy(before, privileges());
	start();
	MUST_INT(prctl(PR_GET_DUMPABLE), ==, 1);
	MUST(!strcmp(before, privileges()));
}

static const char *sandbox(void)
{
	TRY(spawn(start_sandboxed));
	CHECK(!has_capabilities(sh->helper));
	if (*status(sh->helper, "NoNewPrivs"))	/* Linux 4.10 */
		CHECK_INT(atoi(status(sh->helper, "NoNewPrivs")), ==, 1);
	CHECK_INT(atoi(status(sh->helper, "Seccomp")), ==, 2);
	CHECK(strstr(slurp("/proc/%d/limits", sh->helper), "Max core file size        1 ") ||
		strstr(slurp("/proc/%d/limits", sh->helper), "Max core file size        0 "));
	/* all but SIGKILL and SIGSTOP, and the one that rt_sigtimedwait waits for */
	CHECK((strtoull(status(sh->helper, "SigBlk"), NULL, 16) | 1ULL << (SIGKILL - 1) |
		1ULL << (SIGSTOP - 1) | !has_pidfd(sh->helper)) == ~0ULL);
	return killed_asynchronously();
}

/* What the filter says, by running it.  The argument that it looks at is arg. */
static unsigned verdict(unsigned arch, unsigned nr, unsigned arg)
{
	const struct atd_insn *p;
	unsigned a = 0;

	for (p = atd_filter; ; p++)
		switch (p->code) {
		case 0x20: a = p->k == 0 ? nr : p->k == 4 ? arch : arg; break;
		case 0x15: p += a == p->k ? p->jt : p->jf; break;
		default: return p->k;
		}
}

static const char *filter_list(void)
{
	static const unsigned any[] = {
		__NR_ppoll, __NR_rt_sigtimedwait, __NR_getppid, __NR_munmap, __NR_close,
		__NR_timer_settime, __NR_exit, __NR_exit_group
	};
	static const unsigned values[] = { 0, 1, 4, 9, 10, 24, 64, 0x100, 0x101, 0x10000000 };
	unsigned nr, i, listed, arch = atd_filter[1].k;

	for (nr = 0; nr < 0x40001000; nr = nr == 0x1fff ? 0x40000000 : nr + 1)
		for (i = 0; i < sizeof(values) / sizeof(*values); i++) {
			const unsigned v = values[i];
			unsigned j;

			for (j = 0; j < sizeof(any) / sizeof(*any) && any[j] != nr; j++)
				;
			listed = j < sizeof(any) / sizeof(*any) || (nr == __NR_kill && v == 0) ||
				(nr == __NR_timer_create && v == CLOCK_MONOTONIC) ||
				(nr == __NR_unshare && v == CLONE_VM) ||
				(nr == __NR_madvise && (v == MADV_DONTNEED || v == 24 /* .._LOCKED */));
			CHECK(verdict(arch, nr, v) == (listed ? (unsigned)ALLOW : 0x80000000U));
			CHECK_INT(verdict(arch ^ 0x40000000, nr, v), ==, 0x80000000U);
		}
	return NULL;
}

/* As a user who has the VMM's uid but none of its capabilities. */
static const char *peeks(pid_t pid)
{
	static const struct atd_cap_data none[2];
	struct atd_cap_header header = { ATD_CAPABILITY_VERSION_3, 0 };
	char path[64];
	pid_t child;
	int st;

	child = fork();
	if (!child) {
		if (atd_syscall(__NR_capset, atd_arg(&header), atd_arg(none), 0, 0, 0))
			_exit(2);
		snprintf(path, sizeof(path), "/proc/%d/mem", pid);
		if (open(path, O_RDWR) >= 0)
			_exit(3);
		snprintf(path, sizeof(path), "/proc/%d/root/", pid);
		_exit(open(path, O_RDONLY) >= 0 ? 4 : 0);
	}
	CHECK(child > 0 && reap(child, &st) && st == 0);
	return NULL;
}

static const char *same_uid_peeks(void)
{
	if (geteuid())
		SKIP("needs root");
	TRY(spawn(start));
	TRY(peeks(vmm));	/* as it was without a helper, */
	TRY(peeks(sh->helper));	/* so it is with one */
	return killed_asynchronously();
}

/* As root who has given some up, of those below and above 32. */
static void start_with_less(void)
{
	struct atd_cap_header header = { ATD_CAPABILITY_VERSION_3, 0 };
	static struct atd_cap_data caps[2];

	MUST_INT(atd_syscall(__NR_capget, atd_arg(&header), atd_arg(caps), 0, 0, 0), ==, 0);
	caps[0].permitted &= 0x5a5a5a5a;
	caps[1].permitted &= 0x5a5a5a5a;
	caps[0].effective &= caps[0].permitted & 0x0ff00ff0;
	caps[1].effective = 0;
	caps[0].inheritable = caps[0].permitted & 0xff;
	caps[1].inheritable = 0;
	MUST_INT(atd_syscall(__NR_capset, atd_arg(&header), atd_arg(caps), 0, 0, 0), ==, 0);
	start();
}

/* To trace the helper takes what is permitted to it. */
static const char *permitted_stays(void)
{
	char permitted[32];

	TRY(spawn(start_with_less));
	snprintf(permitted, sizeof(permitted), "%s", status(vmm, "CapPrm"));
	CHECK(*permitted && !strcmp(status(sh->helper, "CapPrm"), permitted));
	CHECK(!has_capabilities(sh->helper));
	TRY(killed_asynchronously());
	if (strtoull(permitted, NULL, 16) == 0)
		SKIP_ROOT("needs capabilities");
	return NULL;
}

static void start_as_root_then_drop(void)
{
	start();
	become_nobody();
	sh->second = async_teardown_stop();
}

static const char *drops_uid(void)
{
	if (geteuid())
		SKIP("needs root");
	TRY(spawn(start_as_root_then_drop));
	CHECK_INT(sh->second, ==, -EPERM);
	CHECK(asleep(sh->helper));
	TRY(killed_asynchronously());
	/* and once not stopped, so that nothing but the end itself wakes it */
	TRY(spawn(start_as_root_then_drop));
	return killed_and_gone();
}

static void start_then_sandbox(void)
{
	static const struct atd_insn insns[] = {	/* the helper needs none of these */
		STMT(0x20, 0),
		JEQ(__NR_clone, 5, 0), JEQ(__NR_ppoll, 4, 0), JEQ(__NR_wait4, 3, 0),
		JEQ(__NR_kill, 2, 0), JEQ(__NR_exit_group, 1, 0), STMT(6, ALLOW), STMT(6, ERRNO | EPERM)
	};

	start();
	if (!geteuid()) {
		MUST(!chroot("/dev"));
		become_nobody();
	}
	MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	filter(insns, 8);
	/* nobody can tell any more whether there is a helper: no second one */
	MUST_INT(async_teardown_start(), ==, -EPERM);
	MUST_INT(async_teardown_stop(), ==, -EPERM);
}

static const char *sandboxes_itself(void)
{
	TRY(spawn(start_then_sandbox));
	return killed_asynchronously();
}

#if defined(__x86_64__)
#include <sys/io.h>
#include <sys/user.h>

/* Reads a port, whatever may be there. */
__asm__(".text\n.globl read_port\nread_port: inb $0x80, %al\n1: jmp 1b\n");
extern const char read_port[];

static void take_ports_then_drop(void)
{
	sh->second = ioperm(0x80, 1, 1);
	start();
	if (!sh->second)
		MUST(!ioperm(0x80, 1, 0));
}

/* Has the helper run that: does it get through? */
static const char *ports_stay(void)
{
	struct user_regs_struct regs;
	pid_t helper;
	int st;

	TRY(spawn(take_ports_then_drop));
	helper = sh->helper;
	if (sh->second) {
		TRY(killed_asynchronously());
		SKIP_ROOT("no ioperm: needs CONFIG_X86_IOPL_IOPERM, and a container CAP_SYS_RAWIO");
	}
	CHECK(!ptrace(PTRACE_SEIZE, helper, 0, 0) && !ptrace(PTRACE_INTERRUPT, helper, 0, 0));
	CHECK(reap(helper, &st) && WIFSTOPPED(st));
	CHECK(!ptrace(PTRACE_GETREGS, helper, 0, &regs));
	regs.rip = (uintptr_t)read_port;
	regs.orig_rax = ~0ULL;		/* no system call to restart */
	CHECK(!ptrace(PTRACE_SETREGS, helper, 0, &regs) && !ptrace(PTRACE_SINGLESTEP, helper, 0, 0));
	CHECK(reap(helper, &st) && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTRAP);
	CHECK(by_kill() && reap(vmm, NULL) && !signal_one(helper, SIGKILL) && reap(helper, NULL));
	return NULL;
}
#else
static const char *ports_stay(void) { SKIP("only for x86-64"); }
#endif

#if defined(__x86_64__) || defined(__aarch64__)
static int attempt;
static pid_t bystander;

static void evil(void)
{
	static char *argv[] = { (char *)(uintptr_t)"true", NULL };
	long r = 0;

	sh->entered = 1;
	switch (attempt) {
	case 0: break;	/* stay within the list */
	case 1: r = atd_syscall(__NR_openat, AT_FDCWD, atd_arg("/etc/passwd"), 0, 0, 0); break;
	case 2: r = atd_syscall(__NR_execve, atd_arg("/bin/true"), atd_arg(argv), 0, 0, 0); break;
	case 3: r = atd_syscall(__NR_kill, bystander, SIGKILL, 0, 0, 0); break;
	case 4: r = atd_syscall(__NR_sendto, 0, atd_arg(""), 1, 0, 0); break;
	case 5: r = atd_syscall(__NR_clone, SIGCHLD, 0, 0, 0, 0); break;
	case 6: r = atd_syscall(__NR_write, 1, atd_arg("x"), 1, 0, 0); break;
#ifdef __x86_64__
	case 7: r = atd_syscall(0x40000000 | __NR_getppid, 0, 0, 0, 0, 0); break;
	case 8:	/* a listed number, but i386's fgetxattr */
		__asm__ volatile("int $0x80" : "=a"(r) : "0"(__NR_exit_group) : "memory");
		break;
#endif
	}
	(void)r;
	sh->passed = 1;
	atd_syscall(__NR_exit_group, 42, 0, 0, 0, 0);
}

/* Rewrites the code that the helper returns to when it wakes. */
static void start_taken_over(void)
{
#ifdef __x86_64__
	unsigned char jump[] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0 };
	const int at = 2;
#else
	uint32_t jump[] = { 0x58000050 /* ldr x16, .+8 */, 0xd61f0200 /* br x16 */, 0, 0 };
	const int at = 8;
#endif
	void (*to)(void) = evil;
	char *word, *pc, *page;
	size_t size = (size_t)sysconf(_SC_PAGESIZE);

	start();
	MUST(UNTIL(deadline, state(sh->helper) == 'S' &&
		(word = strrchr(slurp("/proc/%d/syscall", sh->helper), ' '))));
	pc = (char *)(uintptr_t)strtoull(word + 1, NULL, 16);
	memcpy((char *)jump + at, &to, sizeof(to));
	page = (char *)((uintptr_t)pc & ~(size - 1));
	MUST(!mprotect(page, 2 * size, PROT_READ | PROT_WRITE | PROT_EXEC));
	memcpy(pc, jump, sizeof(jump));
	__builtin___clear_cache(pc, pc + sizeof(jump));
}

static const char *taken_over(void)
{
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };
	int st, last = 6;
	pid_t helper;

#ifdef __x86_64__
	last = 8;
#endif
	setrlimit(RLIMIT_CORE, &core);	/* where we may */
	CHECK_INT((bystander = fork()), >=, 0);
	if (!bystander) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	for (attempt = 0; attempt <= last; attempt++) {
		TRY(spawn(start_taken_over));
		helper = sh->helper;
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(reap(helper, &st));
		CHECK(sh->entered && mm_freed());
		if (attempt == 0)
			CHECK(sh->passed && WIFEXITED(st) && WEXITSTATUS(st) == 42);
		else
			CHECK(!sh->passed && WIFSIGNALED(st) && !WCOREDUMP(st) && (WTERMSIG(st) == SIGSYS ||
				(attempt == 8 && WTERMSIG(st) == SIGSEGV)));	/* a kernel without int $0x80 */
	}
	CHECK(asleep(bystander));
	CHECK(!signal_one(bystander, SIGKILL) && reap(bystander, NULL));
	return NULL;
}
#else
static const char *taken_over(void)
{
	SKIP("only for x86-64 and aarch64");
}
#endif

static const struct test sandbox_tests[] = {
	{ "drops_uid", drops_uid, "the VMM drops root: no leak, and stop says -EPERM" },
	{ "sandbox", sandbox, "no effective capabilities, no_new_privs, a filter; the VMM's own unchanged" },
	{ "filter_list", filter_list, "the filter allows the listed calls and no other number" },
	{ "permitted_stays", permitted_stays, "the helper's permitted capabilities are the VMM's, with none in effect" },
	{ "same_uid_peeks", same_uid_peeks, "nobody can read the VMM's memory through it who could not before" },
	{ "sandboxes_itself", sandboxes_itself, "start, then the VMM's own chroot, setuid and filter" },
	{ "taken_over", taken_over, "taken over: open, execve, kill, sendto, clone, write, other ABIs are its death" },
	{ "ports_stay", ports_stay, "ioperm of before start is the helper's, even when the VMM drops it" },
	{ NULL, NULL, NULL }
};
