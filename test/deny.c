/*
 * deny - run a program on a kernel that is older or poorer than this one
 *
 *	deny ERRNO CALL[,CALL...] PROGRAM [ARGUMENT...]
 *
 * Each CALL, or NAME:N for the calls whose first argument is N, fails with
 * ERRNO (a name or a number, or KILL) for PROGRAM and all that it starts.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct { const char *name; int number; } errnos[] = {
	{ "EPERM", EPERM }, { "ENOSYS", ENOSYS }, { "EINVAL", EINVAL }, { "KILL", -1 },
};

static const struct { const char *name; unsigned nr; } calls[] = {
	{ "capget", __NR_capget }, { "capset", __NR_capset }, { "chdir", __NR_chdir }, { "clone", __NR_clone },
	{ "close", __NR_close }, { "close_range", __NR_close_range }, { "exit", __NR_exit },
	{ "pidfd_open", __NR_pidfd_open },
	{ "ppoll", __NR_ppoll }, { "prctl", __NR_prctl }, { "prlimit64", __NR_prlimit64 },
	{ "rt_sigprocmask", __NR_rt_sigprocmask },
	{ "rt_sigtimedwait", __NR_rt_sigtimedwait }, { "setsid", __NR_setsid },
	{ "unshare", __NR_unshare }, { "wait4", __NR_wait4 },
};

static void fail(const char *what, const char *which)
{
	fprintf(stderr, "deny: %s: %s\n", what, which);
	exit(125);
}

int main(int argc, char **argv)
{
	struct sock_filter insns[64];
	struct sock_fprog prog = { 0, insns };
	unsigned action;
	char *call, *arg, *end;
	size_t i;
	int number;

	if (argc < 4)
		fail("usage", "deny ERRNO CALL[:N][,CALL...] PROGRAM [ARGUMENT...]");
	number = (int)strtol(argv[1], &end, 10);
	for (i = 0; *end && i < sizeof(errnos) / sizeof(errnos[0]); i++)
		if (!strcmp(argv[1], errnos[i].name)) {
			number = errnos[i].number;
			end = argv[1] + strlen(argv[1]);
		}
	if (*end)
		fail("no such errno", argv[1]);
	action = number < 0 ? SECCOMP_RET_KILL : SECCOMP_RET_ERRNO | (unsigned)number;

#define INSN(...) (insns[prog.len++] = (struct sock_filter)__VA_ARGS__)
	for (call = strtok(argv[2], ","); call; call = strtok(NULL, ",")) {
		if ((arg = strchr(call, ':')))
			*arg++ = 0;
		for (i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
			if (!strcmp(call, calls[i].name))
				break;
		if (i == sizeof(calls) / sizeof(calls[0]))
			fail("no such call", call);
		if (prog.len > sizeof(insns) / sizeof(insns[0]) - 8)
			fail("too many calls", call);
		INSN(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
		INSN(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].nr, 0, arg ? 3 : 1));
		if (arg) {
			INSN(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) +
				(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 4)));
			INSN(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)strtoul(arg, NULL, 0), 0, 1));
		}
		INSN(BPF_STMT(BPF_RET | BPF_K, action));
	}
	INSN(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));

	/* As root without no_new_privs, which would be inherited and be seen. */
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) &&
	    (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	     prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)))
		fail("no seccomp", strerror(errno));
	execvp(argv[3], argv + 3);
	fail(argv[3], strerror(errno));
}
