/*
 * forking.c - other processes that begin in the VMM or run on its memory: fork, vfork, exec,
 * daemon, a second copy of the header
 *
 * Whose helper it is in a child, what start and stop do there, and what becomes of a child
 * that still runs on the memory when the helper releases it.  Threads are in starting.c and
 * ending.c.
 *
 * A new case: a VMM that forks, killed_and_gone() or leaves(helper) and a look at the child;
 * plus its line in the table below.
 */

static void start_and_fork(void)
{
	pid_t child;

	start();
	child = fork();
	MUST_INT(child, >=, 0);
	if (!child) {
		MUST_INT(async_teardown_stop(), ==, 0);	/* not its own to stop */
		MUST_INT((sh->second = async_teardown_start()), >, 0);
		MUST_INT(sh->second, !=, sh->helper);
		sh->passed = 1;
		for (;;)
			pause();
	}
	sh->target = child;
	MUST(UNTIL(deadline, sh->passed));
}

static const char *forks(void)
{
	pid_t helper, child, childs;

	/* the child dies first, */
	TRY(spawn(start_and_fork));
	CHECK(asleep(sh->helper) && asleep(sh->second));
	CHECK(!signal_one(sh->target, SIGKILL));
	CHECK(leaves(sh->second));
	CHECK(freeze(sh->helper) && thaw(sh->helper));
	TRY(killed_and_gone());
	/* and the parent */
	TRY(spawn(start_and_fork));
	helper = sh->helper, childs = sh->second, child = sh->target;
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(leaves(helper));
	CHECK(freeze(childs) && thaw(childs));
	CHECK(!signal_one(child, SIGKILL) && reap(child, NULL) && gone(childs));
	return NULL;
}

static void *start_and_stop(void *arg)
{
	(void)arg;
	while (!sh->go) {
		async_teardown_start();
		async_teardown_stop();
	}
	return NULL;
}

static void fork_while_starting(void)
{
	pthread_t t;
	pid_t child;
	int i;

	MUST(!pthread_create(&t, NULL, start_and_stop, NULL));
	for (i = 0; i < effort(300); i++) {
		child = fork();
		if (!child) {
			alarm((unsigned)deadline);
			MUST_INT(async_teardown_start(), >, 0);
			MUST_INT(async_teardown_stop(), ==, 0);
			_exit(0);
		}
		MUST(succeeds(child));
	}
	sh->go = 1;
	MUST(!pthread_join(t, NULL));
}

static const char *forks_while_starting(void)
{
	TRY(spawn(fork_while_starting));
	return killed_synchronously();
}

static void daemonize(void)
{
	sh->daemon = 1;
	if (fork())
		_exit(0);
	setsid();
	sh->target = getpid();
}

static void start_as_daemon(void) { daemonize(); start(); }
static void start_before_daemon(void) { start(); daemonize(); }

static const char *daemonizes(void)
{
	pid_t helper;

	TRY(spawn(start_as_daemon));
	CHECK(reap(vmm, NULL));
	vmm = sh->target;
	TRY(killed_asynchronously());

	TRY(spawn(start_before_daemon));
	helper = sh->helper;
	CHECK(reap(vmm, NULL));
	CHECK(leaves(helper));
	vmm = sh->target;
	return killed_synchronously();
}

static void exec_sleep(void)
{
	if (sh->counter)
		sh->result = async_teardown_stop();
	ready();
	execl("/proc/self/exe", "scenarios", "--pause", (char *)NULL);
	_exit(98);
}

static void start_stop_exec(void) { start(); sh->counter = 1; exec_sleep(); }
static void start_exec(void) { start(); exec_sleep(); }

static const char *execs(void)
{
	pid_t helper;
	int polls;

	TRY(spawn(start_stop_exec));
	CHECK_INT(sh->result, ==, 0);
	CHECK(UNTIL(deadline, strstr(slurp("/proc/%d/cmdline", vmm) + 10, "--pause")));
	CHECK(mm_freed());	/* nothing left of the old memory */
	CHECK(by_kill() && reap(vmm, NULL));

	/* without stop it stays, but no longer than the process; unless it polls */
	TRY(spawn(start_exec));
	helper = sh->helper;
	polls = !has_pidfd(helper);
	CHECK(UNTIL(deadline, strstr(slurp("/proc/%d/cmdline", vmm) + 10, "--pause")));
	if (polls)
		CHECK(mm_freed() && UNTIL(deadline, state(helper) == 'Z') && asleep(vmm));
	else
		CHECK(asleep(helper) && mm_held());
	return killed_and_gone();
}

static void stop_in_vfork(void)
{
	pid_t child;

	start();
	child = vfork();
	if (!child)
		_exit(async_teardown_stop());
	MUST(succeeds(child));
	MUST_INT(async_teardown_start(), ==, sh->helper);
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST(childless());
	start();
}

static void stop_in_vforks_while_starting(void)
{
	pthread_t t[2];
	pid_t child;
	int i;

	MUST(!setpgid(0, 0));	/* a helper of PID 0 is one's process group */
	for (i = 0; i < 2; i++)
		MUST(!pthread_create(&t[i], NULL, start_and_stop, NULL));
	for (i = 0; i < effort(2000); i++) {
		child = vfork();
		if (!child)
			_exit(async_teardown_stop());
		MUST(succeeds(child));
	}
	sh->go = 1;
	for (i = 0; i < 2; i++)
		MUST(!pthread_join(t[i], NULL));
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST(childless());
}

static const char *vfork_stops(void)
{
	TRY(spawn(stop_in_vfork));
	TRY(killed_asynchronously());
	TRY(spawn(stop_in_vforks_while_starting));
	return killed_synchronously();
}

static void stop_as_impostor(void)
{
	pid_t child;

	start();
	child = vfork();
	if (!child) {
		atd_shared.vmm = getpid();	/* as if namespaces gave us one number */
		_exit(async_teardown_stop());
	}
	MUST(succeeds(child));
	atd_shared.vmm = getpid();
	MUST_INT(async_teardown_start(), ==, sh->helper);
}

static const char *impostor_stops(void)
{
	TRY(spawn(stop_as_impostor));
	return killed_asynchronously();
}

/*
 * Another process on the VMM's memory must not call start or stop.  If it does, there may be
 * no helper all of a sudden; but a signal to PID 0 would go to the whole process group.  A
 * thread stands for that process here.
 */
static void *forget_and_remember(void *arg)
{
	(void)arg;
	for (;;) {
		const int pid = sh->attempt;

		if (pid) {
			__atomic_store_n(&atd_shared.pid, 0, __ATOMIC_SEQ_CST);
			__atomic_store_n(&atd_shared.pid, pid, __ATOMIC_SEQ_CST);
		}
		sh->counter++;
	}
	return NULL;
}

static void await_turn(void)
{
	const int before = sh->counter;

	MUST(UNTIL(deadline, sh->counter - before > 1));
}

static void stop_while_forgotten(void)
{
	pthread_t t;
	pid_t child;
	int i;

	MUST(!setpgid(0, 0));
	child = fork();
	if (!child)
		for (;;)
			pause();
	sh->target = child;
	ready();
	MUST(!pthread_create(&t, NULL, forget_and_remember, NULL));
	for (i = 0; i < effort(300); i++) {
		start();
		sh->attempt = sh->helper;
		await_turn();
		async_teardown_stop();
		sh->attempt = 0;
		await_turn();
		async_teardown_stop();
	}
	sh->passed = 1;
}

static const char *group_is_left_alone(void)
{
	pid_t left;

	TRY(spawn(stop_while_forgotten));
	CHECK(UNTIL(deadline, sh->passed || *sh->broken || state(vmm) == 'Z'));
	if (*sh->broken)
		return sh->broken;
	CHECK(sh->passed);
	CHECK(asleep(sh->target));
	CHECK(by_kill() && reap(vmm, NULL));
	while ((left = child_of(getpid())))	/* also helpers that were forgotten */
		CHECK(!signal_one(left, SIGKILL) && reap(left, NULL));
	return NULL;
}

/* A child of vfork that has yet to call execve runs on the VMM's memory. */
static void *vfork_and_wait(void *arg)
{
	(void)arg;
	if (!vfork()) {
		sh->target = getpid();
		sh->alive = 1;
		while (!sh->go)
			nap();
		sh->passed = 1;
		_exit(7);
	}
	return NULL;
}

static void start_beside_vfork(void)
{
	pthread_t t;

	make_told_ram((size_t)mib << 20);
	start();
	MUST(!pthread_create(&t, NULL, vfork_and_wait, NULL));
	MUST(UNTIL(deadline, sh->alive));
}

static const char *vfork_in_flight(void)
{
	pid_t helper, child;
	int st, alone;

	TRY(spawn(start_beside_vfork));
	helper = sh->helper, child = sh->target;
	alone = threads_of(helper) == 1;
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(leaves(helper));
	if (alone) {
		/* it has seen the child, and left the memory to it */
		CHECK(mm_held() && state(child) != 'Z');
		sh->go = 1;
		CHECK(reap(child, &st) && WIFEXITED(st) && WEXITSTATUS(st) == 7 && sh->passed);
	} else
		CHECK(reap(child, &st) && WIFSIGNALED(st) && WTERMSIG(st) == SIGSEGV);
	CHECK(mm_freed());
	return NULL;
}

static void fork_with_ram(void)
{
	make_told_ram((size_t)mib << 20);
	start_and_fork();
}

static const char *fork_has_ram(void)
{
	pid_t helper, child, childs;

	TRY(spawn(fork_with_ram));
	helper = sh->helper, childs = sh->second, child = sh->target;
	CHECK(by_kill() && reap(vmm, NULL) && leaves(helper));
	CHECK(asleep(child) && mm_held());	/* the child has its own copy */
	CHECK(!signal_one(child, SIGKILL) && reap(child, NULL) && gone(childs));
	return NULL;
}

/*
 * The program's file comes from a server that no longer answers when the VMM dies, and the
 * pages of its code have been reclaimed.  A plain exit needs none of them.
 */
#if defined(SYS_process_madvise) && __has_include(<linux/fuse.h>)
#include <sys/uio.h>

struct served { int helper; unsigned long from, to; };

/* The VMM, run from the file that is served; 3 is a pipe, 4 the lock's file. */
static int served(const char *how)
{
	struct served told = { 0, (unsigned long)atd_image_start, (unsigned long)atd_image_end };

	lockfd = 4;
	hold_memory();
	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	if ((*how == '1' && async_teardown_ram(ram, ram_size)) || (told.helper = async_teardown_start()) <= 0)
		return 1;
	if (write(3, &told, sizeof(told)) != sizeof(told))
		return 1;
	for (;;)
		pause();
}

/* A file system that is one file, this program. */
static void serve_program(int program)
{
	static char buf[1 << 17], data[1 << 17];
	struct fuse_in_header *in = (void *)buf;
	struct fuse_read_in *what = (void *)(in + 1);
	struct fuse_init_out init = { .major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
		.max_write = 4096 };
	struct fuse_attr_out attr = { .attr = { .ino = 1, .mode = S_IFREG | 0755, .nlink = 1 } };
	struct fuse_open_out opened = { .fh = 1, .open_flags = FOPEN_KEEP_CACHE };
	struct fuse_out_header out;
	struct iovec reply[2] = { { &out, sizeof(out) }, { NULL, 0 } };
	struct stat st;

	fstat(program, &st);
	attr.attr.size = (uint64_t)st.st_size;
	while (read(fuse, buf, sizeof(buf)) > 0) {
		memset(&out, 0, sizeof(out));
		reply[1].iov_len = 0;
#define REPLY(with) (reply[1].iov_base = &(with), reply[1].iov_len = sizeof(with))
		switch (in->opcode) {
		case FUSE_INIT: REPLY(init); break;
		case FUSE_GETATTR: REPLY(attr); break;
		case FUSE_OPEN: REPLY(opened); break;
		case FUSE_READ:
			reply[1].iov_base = data;
			reply[1].iov_len = (size_t)pread(program, data, what->size, (off_t)what->offset);
			break;
		case FUSE_FLUSH: case FUSE_RELEASE: break;
		case FUSE_FORGET: case FUSE_BATCH_FORGET: continue;
		default: out.error = -ENOSYS;
		}
#undef REPLY
		out.unique = in->unique;
		out.len = (uint32_t)(sizeof(out) + reply[1].iov_len);
		if (writev(fuse, reply, 2) < 0)
			continue;
	}
	_exit(0);
}

/* As memory pressure does. */
static void reclaim(pid_t pid, const struct served *told)
{
	const unsigned long page = (unsigned long)sysconf(_SC_PAGESIZE);
	const int pidfd = (int)syscall(ATD_NR_PIDFD_OPEN, pid, 0), file = open(mounted_file, O_RDONLY | O_CLOEXEC);
	struct iovec at = { NULL, page };
	unsigned long i;

	for (i = told->from & -page; i < told->to; i += page) {
		at.iov_base = (void *)i;
		syscall(SYS_process_madvise, pidfd, &at, 1UL, 21 /* MADV_PAGEOUT */, 0U);
	}
	posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
	close(file);
	close(pidfd);
}

static const char *dies_unserved(pid_t server, const char *how)
{
	struct served told;
	int to_me[2];

	CHECK(!pipe(to_me) && (lockfd = memfd_create("lock", MFD_CLOEXEC)) >= 0 && !ftruncate(lockfd, 4096));
	CHECK_INT((vmm = fork()), >=, 0);
	if (!vmm) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(to_me[1], 9);
		dup2(lockfd, 10);
		dup2(9, 3);
		dup2(10, 4);
		execl(mounted_file, "scenarios", "--served", how, (char *)NULL);
		_exit(1);
	}
	close(to_me[1]);
	CHECK_INT(read(to_me[0], &told, sizeof(told)), ==, sizeof(told));
	close(to_me[0]);
	sh->helper = told.helper;
	CHECK(asleep(vmm) && asleep(told.helper) && mm_held());
	reclaim(vmm, &told);
	CHECK(freeze(server));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(UNTIL(deadline / 10, waitpid(told.helper, NULL, WNOHANG | __WALL) == told.helper));
	CHECK(mm_freed());
	close(lockfd);
	return NULL;
}

static const char *program_unserved(void)
{
	const int program = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	const char *r;
	pid_t server;

	if (prctl(PR_GET_SECCOMP))
		SKIP("under a filter the helper does not lock its code");
	if (syscall(SYS_process_madvise, -1, NULL, 0UL, 21, 0U) && errno == ENOSYS)
		SKIP("needs process_madvise (Linux 5.10), to reclaim its pages");
	TRY(mount_fuse(0755));
	CHECK_INT((server = fork()), >=, 0);
	if (!server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve_program(program);
	}
	close(fuse);
	r = dies_unserved(server, "0");
	signal_one(server, SIGCONT);
	if (!r)
		r = dies_unserved(server, "1");
	/* Without a server all who wait for it are told so. */
	signal_one(server, SIGKILL);
	reap(server, NULL);
	umount2(mounted_file, MNT_DETACH);
	return r;
}
#else
static int served(const char *how) { return !how; }
static const char *program_unserved(void) { SKIP("needs linux/fuse.h and process_madvise"); }
#endif

/* A second copy of the header, private to a file or library that may be linked. */
extern int second_start(void *start, unsigned long size) __attribute__((weak));

static int second_has_ram;

static void start_two(void)
{
	make_told_ram((size_t)mib << 20);
	start();
	sh->second = second_start(second_has_ram ? ram : NULL, ram_size);
	MUST_INT(sh->second, >, 0);
	MUST_INT(sh->second, !=, sh->helper);
}

static const char *two_copies(void)
{
	pid_t first, second;
	int i, st[2];

	/* the second one without and with RAM of its own */
	for (i = 0; i < 2 * effort(10); i++) {
		second_has_ram = i % 2;
		TRY(spawn(start_two));
		first = sh->helper, second = sh->second;
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(reap(first, &st[0]) && reap(second, &st[1]) && mm_freed());
		/* One thread waits for the other helper.  Several do not, and if they are
		 * in another image it does not survive. */
		if (ASYNC_TEARDOWN_THREADS == 1) {
			CHECK_INT(st[0], ==, 0);
			CHECK_INT(st[1], ==, 0);
		}
	}
	return NULL;
}

static const struct test forking_tests[] = {
	{ "forks", forks, "a forked child has no helper, and may have its own" },
	{ "forks_while_starting", forks_while_starting, "fork while another thread is in start" },
	{ "vfork_stops", vfork_stops, "stop in a vfork child, thousands of times: the parent's helper stays the parent's" },
	{ "daemonizes", daemonizes, "daemonizing before and after start" },
	{ "execs", execs, "stop, then exec: nothing left; exec alone: gone with the process, or when it polls" },
	{ "impostor_stops", impostor_stops, "stop in a vfork child that has the VMM's number changes nothing" },
	{ "group_is_left_alone", group_is_left_alone, "stop while another process on the memory forgets the helper: no signal to the process group" },
	{ "vfork_in_flight", vfork_in_flight, "a vfork child on the memory: one thread leaves it alone, several end it" },
	{ "program_unserved", program_unserved, "the program's pages are reclaimed and its file's server hangs: gone all the same" },
	{ "fork_has_ram", fork_has_ram, "a forked child's helper frees the child's" },
	{ "two_copies", two_copies, "two copies of the header in one process: both helpers go" },
	{ NULL, NULL, NULL }
};
