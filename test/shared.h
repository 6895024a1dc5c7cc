/*
 * shared.h - what several topics need and the harness does not: to give up root, private
 * mounts, control groups, starts that fail, seccomp filters, RAM, descriptors to pass, a
 * release that is held up
 */
#include <glob.h>
#include <grp.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <linux/userfaultfd.h>

static void become_nobody(void)
{
	MUST(!setgroups(0, NULL) && !setresgid(NOBODY, NOBODY, NOBODY) &&
		!setresuid(NOBODY, NOBODY, NOBODY));
}

/* In effect, or to be inherited. */
static int has_capabilities(pid_t pid)
{
	static const char *const keys[] = { "CapInh", "CapEff", "CapAmb" };
	unsigned long long caps = 0;
	int i;

	for (i = 0; i < 3; i++)
		caps |= strtoull(status(pid, keys[i]), NULL, 16);
	return caps != 0;
}

/* What is missing, or may not be used: errno says which. */
static const char *cannot_open(const char *path)
{
	static char reason[128];

	snprintf(reason, sizeof(reason), "SKIP cannot open %s: %s", path, strerror(errno));
	return reason;
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), ok;

	if (fd < 0)
		return 0;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* Writes to a file of the test's control group. */
static int put(const char *file, const char *text)
{
	char path[192];

	snprintf(path, sizeof(path), "%s/%s", sh->cgroup, file);
	return write_text(path, text);
}

/*
 * What is mounted there only the test sees, and it goes with it.  In a chroot, / need not be
 * a mount point, but /proc is one.  Who may not mount gets a user namespace to do it in.
 */
static const char mounted[] = "/proc/tty", mounted_file[] = "/proc/uptime";
#define MAY_NOT_MOUNT "may not mount: needs root (in a container, CAP_SYS_ADMIN), or a user namespace"

static const char *private_mounts(void)
{
	char uid[32], gid[32];

	snprintf(uid, sizeof(uid), "%d %d 1", (int)geteuid(), (int)geteuid());
	snprintf(gid, sizeof(gid), "%d %d 1", (int)getegid(), (int)getegid());
	if (unshare(CLONE_NEWNS) && (unshare(CLONE_NEWUSER | CLONE_NEWNS) ||
	    !write_text("/proc/self/uid_map", uid) || !write_text("/proc/self/setgroups", "deny") ||
	    !write_text("/proc/self/gid_map", gid)))
		SKIP(MAY_NOT_MOUNT);
	if (mount(NULL, "/proc", NULL, MS_PRIVATE, NULL))
		SKIP(MAY_NOT_MOUNT);
	return NULL;
}

static const char *mount_tmpfs(void)
{
	TRY(private_mounts());
	if (mount("atd", mounted, "tmpfs", 0, "size=1g"))
		SKIP(MAY_NOT_MOUNT);
	return NULL;
}

static int join(pid_t pid)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", pid);
	return put("cgroup.procs", text);
}

/* A control group of our own under one of these that has the file. */
static int make_cgroup(const char *const *roots, const char *file)
{
	char path[192];

	for (; *roots; roots++) {
		snprintf(sh->cgroup, sizeof(sh->cgroup), "%s/async-teardown-%d", *roots, getpid());
		if (mkdir(sh->cgroup, 0755))
			continue;
		snprintf(path, sizeof(path), "%s/%s", sh->cgroup, file);
		if (!access(path, W_OK))
			return 1;
		rmdir(sh->cgroup);
	}
	return 0;
}

/* Which of the lower descriptors are open. */
static long fd_map(void)
{
	long map = 0;
	int fd;

	for (fd = 0; fd < 63; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			map |= 1L << (fd % (int)(8 * sizeof(long)));
	return map;
}

/* start returns this error, has changed nothing, and leaves no child. */
static void fails_with(int error)
{
	long files = fd_map();

	errno = 77;
	sh->result = async_teardown_start();
	MUST_INT(sh->result, ==, error);
	MUST_INT(errno, ==, 77);
	MUST_INT(fd_map(), ==, files);
	MUST(childless());
	MUST_INT(async_teardown_stop(), ==, 0);
}

/*
 * In a VMM: does the kernel clear the word of CLONE_CHILD_CLEARTID for a helper that is
 * killed?  Since Linux 4.8 (735f2770a770), and where that was backported; not on RHEL 7's 3.10.
 * Without, a killed helper whom somebody else has reaped seems to live.
 */
static int kill_clears(void)
{
	start();
	MUST(!signal_one(sh->helper, SIGKILL) && waitpid(sh->helper, NULL, __WALL) == sh->helper);
	return !atd_shared.alive;
}

/* Seccomp filters of the VMM's own. */
#define STMT(code, k) { code, 0, 0, k }
#define JEQ(k, yes, no) { 0x15, yes, no, k }
enum { ALLOW = 0x7fff0000, ERRNO = 0x50000, TRAP = 0x30000, KILL = 0 /* the thread */ };
#define KILL_PROCESS 0x80000000U	/* before Linux 4.14 it is KILL */

static void filter(const struct atd_insn *insns, size_t n)
{
	struct atd_prog prog;

	prog.len = (unsigned short)n;
	prog.insns = insns;
	/* No_new_privs is inherited and would be seen: only who has no CAP_SYS_ADMIN. */
	if (prctl(PR_SET_SECCOMP, 2, &prog, 0, 0))
		MUST(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, 2, &prog, 0, 0));
}

/* How a call is answered: always, or only where the low half of an argument is this value;
 * or prlimit64 where it sets a limit. */
enum { ALWAYS, ARG_0, ARG_1, SETS };
struct answer { unsigned nr, action; int when; unsigned value; };

/* These calls so, and allows all others. */
static void filter_calls(const struct answer *a, int n)
{
	struct atd_insn insns[64];
	size_t len = 0;

#define INSN(...) (insns[len++] = (struct atd_insn)__VA_ARGS__)
	for (; n > 0; a++, n--) {
		INSN(STMT(0x20, 0));
		INSN(JEQ(a->nr, 0, a->when == ALWAYS ? 1 : 3));
		if (a->when != ALWAYS) {
			INSN(STMT(0x20, 16 + 8 * (unsigned)(a->when - ARG_0) +
				(__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? 4 : 0)));
			INSN(JEQ(a->value, a->when == SETS, a->when != SETS));
		}
		INSN(STMT(6, a->action));
	}
	INSN(STMT(6, ALLOW));
#undef INSN
	filter(insns, len);
}

/* Answers one call so. */
static void filter_one(unsigned nr, unsigned action)
{
	const struct answer one = { nr, action, ALWAYS, 0 };

	filter_calls(&one, 1);
}

static void answer_sigsys(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	(void)context;
	sh->counter++;
}

/* Without SA_RESTART. */
static void on_sigsys(void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction act;

	memset(&act, 0, sizeof(act));
	act.sa_sigaction = handler;
	act.sa_flags = SA_SIGINFO;
	sigaction(SIGSYS, &act, NULL);
}

/* Guest RAM, not touched yet. */
static char *ram;
static size_t ram_size;

static void make_ram(size_t size)
{
	ram_size = size;
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	MUST(ram != MAP_FAILED);
	madvise(ram, size, MADV_NOHUGEPAGE);
}

/* That is touched, and the helper's to free. */
static void make_told_ram(size_t size)
{
	make_ram(size);
	memset(ram, 1, size);
	MUST_INT(async_teardown_ram(ram, size), ==, 0);
}

/* Sends a descriptor that stays open in no process. */
static void send_fd(int to, int fd)
{
	char control[CMSG_SPACE(sizeof(int))], byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	memset(control, 0, sizeof(control));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	MUST_INT(sendmsg(to, &m, 0), ==, 1);
}

static int receive_fd(int from)
{
	char control[CMSG_SPACE(sizeof(int))], byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
		.msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(from, &m, MSG_DONTWAIT) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

/* Has the other end of this socket been closed? */
static int has_ended(int sock)
{
	char c;

	return recv(sock, &c, 1, MSG_DONTWAIT) == 0;
}

/* KVM has a directory PID-FD for each guest in debugfs, which this mounts if it can. */
static __attribute__((unused)) int guests_are_seen(void)
{
	return !geteuid() && !private_mounts() && !mount("atd", mounted, "debugfs", 0, NULL);
}

static __attribute__((unused)) int guest_exists(void)
{
	char pattern[64];
	glob_t g;
	int found;

	snprintf(pattern, sizeof(pattern), "%s/kvm/%d-*", mounted, vmm);
	found = glob(pattern, 0, NULL, &g) == 0;
	globfree(&g);
	return found;
}

static pid_t child_of(pid_t pid)
{
	struct dirent *e;
	pid_t child = 0;
	DIR *d = opendir("/proc");

	while (d && !child && (e = readdir(d)))
		if (atoi(e->d_name) && atoi(status(atoi(e->d_name), "PPid")) == pid)
			child = atoi(e->d_name);
	if (d)
		closedir(d);
	return child;
}

/* How many of its threads wait in this system call. */
static int in_call(pid_t pid, long nr)
{
	char path[64], *call;
	struct dirent *e;
	DIR *d;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	if (!(d = opendir(path)))
		return 0;
	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", pid, atoi(e->d_name));
		call = slurp(path, 0);
		n += *call >= '0' && *call <= '9' && atol(call) == nr;	/* not "running" */
	}
	closedir(d);
	return n;
}

/*
 * Has whoever frees or unmaps some memory of the VMM wait, in madvise or munmap, until the
 * judge reads of it from the userfaultfd that is sent here: from chan[1] to chan[0].  Before
 * madvise has freed it, but after munmap has unmapped all that it was asked to.
 */
static int chan[2];

enum { ON_MADVISE = UFFD_FEATURE_EVENT_REMOVE, ON_MUNMAP = UFFD_FEATURE_EVENT_UNMAP };

/* In the VMM; 0 if there is no userfaultfd. */
static int hold(int to, void *at, size_t size, unsigned on)
{
	struct uffdio_api api = { .api = UFFD_API, .features = on };
	struct uffdio_register reg = { .range = { (uintptr_t)at, size },
		.mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* USER_MODE_ONLY */);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return 0;
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg)) {
		close(fd);
		return 0;
	}
	send_fd(to, fd);
	close(fd);
	return 1;
}

/* In the judge: lets go on who waits now. */
static void let_go(int uffd)
{
	struct uffd_msg msg;

	while (read(uffd, &msg, sizeof(msg)) > 0)
		;
}

static int hold_ram(int to)
{
	return hold(to, ram, ram_size, ON_MADVISE);
}

/* A VMM that sends n userfaultfds. */
static const char *spawn_sending(void (*body)(void), int *uffd, int n)
{
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, chan));
	TRY(spawn(body));
	close(chan[1]);
	while (n-- > 0)
		*uffd++ = receive_fd(chan[0]);
	close(chan[0]);
	return NULL;
}

/* Does somebody wait? */
static int holds(int uffd)
{
	struct pollfd p = { uffd, POLLIN, 0 };

	return poll(&p, 1, 0) == 1 && p.revents & POLLIN;
}

/* Holds nobody any more, until the helper has ended by itself. */
static int reads_on(int uffd, pid_t helper)
{
	int st = 1;

	return UNTIL(deadline, ({
		let_go(uffd);
		waitpid(helper, &st, WNOHANG | __WALL) == helper;
	})) && st == 0;
}
