/*
 * keep.c - async_teardown_keep: the helper frees what is behind kept descriptors, in order
 *
 * For memory that only a descriptor holds, a file of a tmpfs stands; a real guest_memfd, with
 * KVM, is the last test.  Which descriptors may be kept, and what keep and start say of
 * others.  The first sign and the last, and what comes between them: the VMM's memory and its
 * devices are held by userfaultfds, and kept files by a server (FUSE) that does not answer.
 *
 * A new case: a VMM that keeps a pipe of gates[] before or after what it is about, and a
 * judge that asks shut(); plus its line in the table below.
 */
#include <sys/statfs.h>

static long used_mib(void)
{
	struct statfs s;

	return statfs(mounted, &s) ? -1 : (long)((uint64_t)(s.f_blocks - s.f_bfree) * (uint64_t)s.f_bsize >> 20);
}

static int make_file(int n)
{
	static char block[1 << 20];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/XXXXXX", mounted);
	MUST((fd = mkstemp(path)) >= 0 && !unlink(path));
	memset(block, 1, sizeof(block));
	while (n-- > 0)
		MUST_INT(write(fd, block, sizeof(block)), ==, sizeof(block));
	return fd;
}

static int gates[3][2];

/* kind: 0: not kept; 1: kept; 2: kept, and RAM is released first; 3 and 4: a shared
 * file is mapped, too, and is RAM or not */
static void start_with_kept(void)
{
	struct rlimit lim = { 16, 16 };
	int fds[4], i;

	fds[0] = gates[0][1];
	fds[1] = fcntl(make_file(32), F_DUPFD, 700);	/* high, and above the limit later */
	fds[2] = gates[1][1];
	fds[3] = gates[2][1];
	MUST_INT(fds[1], >=, 700);
	for (i = 0; i < 700; i++)
		if (i != fds[0] && i != fds[2] && i != fds[3] && (i > 20 || i == 0))
			close(i);
	for (i = 3; i < 21; i++)	/* the file's first descriptor */
		if (i != fds[0] && i != fds[2] && i != fds[3])
			close(i);
	if (kind >= 2) {
		make_ram((size_t)mib << 20);
		memset(ram, 1, ram_size);
	}
	if (kind >= 3) {
		i = make_file(mib);
		ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, i, 0);
		MUST(ram != MAP_FAILED && !close(i));
	}
	if (kind == 2 || kind == 3)
		MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	MUST(!setrlimit(RLIMIT_NOFILE, &lim));
	MUST_INT(async_teardown_keep(fds, kind ? 4 : 0), ==, 0);
	start();
	MUST_INT(async_teardown_keep(NULL, 0), ==, -EBUSY);
}

static int shut(int i)
{
	struct pollfd p = { gates[i][0], POLLIN, 0 };

	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

static const char *open_gates(void)
{
	int i;

	for (i = 0; i < 3; i++)
		CHECK(!pipe(gates[i]));
	return NULL;
}

/* What the VMM has of them is left. */
static void leave_gates(void)
{
	int i;

	for (i = 0; i < 3; i++)
		close(gates[i][1]);
}

static void close_gates(void)
{
	int i;

	for (i = 0; i < 3; i++)
		close(gates[i][0]);
}

static const char *keeps(void)
{
	pid_t helper;

	TRY(mount_tmpfs());
	for (kind = 0; kind < 5; kind++) {
		TRY(open_gates());
		TRY(spawn(start_with_kept));
		helper = sh->helper;
		leave_gates();
		CHECK_INT(used_mib(), >=, 32);
		CHECK_INT(open_files(helper), >=, 4 * !!kind);
		CHECK_INT(open_files(helper), <=, 4 * !!kind + own_files(helper));
		CHECK(freeze(helper));
		CHECK(by_kill() && reap(vmm, NULL));
		/* This is the difference: what is not kept is freed before wait returns. */
		if (kind) {
			CHECK_INT(used_mib(), >=, 32);
			CHECK(!shut(0));
		} else {
			CHECK_INT(used_mib(), ==, 0);
			CHECK(shut(2));
		}
		CHECK(!signal_one(helper, SIGCONT));
		/* The first is closed when what is mapped is free, */
		CHECK(UNTIL(deadline, shut(0)));
		if (kind)
			CHECK(!mm_held());
		/* and the last one when all else is. */
		CHECK(UNTIL(deadline, shut(2)));
		CHECK(shut(1));
		CHECK_INT(used_mib(), ==, 0);
		if (kind) {
			CHECK(!mm_held());
			CHECK_INT(rss_kib(helper), ==, 0);
		}
		CHECK(gone(helper));
		close_gates();
	}
	return NULL;
}

enum { HELD_MIB = 64 };
static int chosen;		/* how many threads the VMM asks for; 0: it does not */

/* Its RAM, and where it is to be held also a device: the judge gets a userfaultfd of
 * each.  Sets sh->second if they are held. */
static void make_held_ram(int held)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *device = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	MUST(device != MAP_FAILED);
	make_told_ram((size_t)HELD_MIB << 20);
	sh->second = held && hold(chan[1], device, page, ON_MUNMAP) && hold_ram(chan[1]);
	if (chosen)
		async_teardown_threads(chosen);
}

static void start_with_signs(void)
{
	int fds[4];

	make_held_ram(1);
	fds[0] = gates[0][1];
	fds[1] = make_file(32);
	fds[2] = gates[1][1];
	fds[3] = gates[2][1];
	MUST_INT(async_teardown_keep(fds, 4), ==, 0);
	start();
}

/* With chan and gates.  uffd[0] is the device's, uffd[1] the RAM's. */
static const char *spawn_held(void (*body)(void), int uffd[2])
{
	TRY(open_gates());
	TRY(spawn_sending(body, uffd, 2));
	leave_gates();
	return NULL;
}

/* The devices are free before the first kept one is closed, all else before the last. */
static const char *signs(void)
{
	pid_t helper;
	int uffd[2];

	TRY(mount_tmpfs());
	for (chosen = 0; chosen < 2; chosen++) {
		TRY(spawn_held(start_with_signs, uffd));
		helper = sh->helper;
		if (!sh->second) {
			close(uffd[0]);
			close(uffd[1]);
			TRY(killed_and_gone());
			SKIP(NO_USERFAULTFD);
		}
		CHECK(!chosen || threads_of(helper) == 1);
		CHECK(by_kill() && reap(vmm, NULL));

		/* It unmaps the devices, and its other threads sleep. */
		CHECK(UNTIL(deadline, holds(uffd[0]) && in_call(helper, __NR_munmap) == 1));
		CHECK_INT(in_call(helper, __NR_ppoll), ==, threads_of(helper) - 1);
		CHECK(!shut(0) && !shut(1) && !shut(2));
		CHECK_INT(used_mib(), >=, 32);
		let_go(uffd[0]);

		/* The devices are free, and no RAM is. */
		CHECK(UNTIL(deadline, shut(0)));
		CHECK(!mm_held());
		CHECK(UNTIL(deadline, holds(uffd[1]) && in_call(helper, __NR_madvise) > 0));
		if (threads_of(helper) > 1)	/* the others may have come to this first */
			CHECK(UNTIL(deadline, shut(1) && used_mib() == 0));
		CHECK(shut(1));
		CHECK_INT(used_mib(), ==, 0);
		CHECK_INT(rss_kib(helper), >=, HELD_MIB * 1024L);
		CHECK(!shut(2));

		/* All is back. */
		CHECK(UNTIL(deadline, ({ let_go(uffd[1]); shut(2); })));
		CHECK_INT(rss_kib(helper), ==, 0);
		CHECK(leaves(helper));
		close(uffd[0]);
		close(uffd[1]);
		close_gates();
	}
	return NULL;
}

static int slow;		/* how many of the kept files have a server that does not answer */

static void start_with_slow_kept(void)
{
	int fds[5], i, n = 0;

	MUST(!close(fuse));
	make_held_ram(0);
	fds[n++] = gates[0][1];
	while (n <= slow)
		MUST_INT((fds[n++] = open(mounted_file, O_RDONLY)), >=, 0);
	fds[n++] = gates[1][1];
	fds[n++] = gates[2][1];
	MUST_INT(async_teardown_keep(fds, n), ==, 0);
	start();
	sh->go = 1;		/* the server answers the VMM's own close */
	for (i = 1; i <= slow; i++)
		close(fds[i]);
	sh->go = 0;
}

/* A close that waits for a server holds one thread up, and what is given last. */
static const char *slow_close(void)
{
	pid_t helper;
	int n, uffd[2];

	TRY(mount_slow_file());
	for (chosen = 0; chosen < 2; chosen++)
		for (slow = 1; slow <= 2; slow++) {
			TRY(spawn_held(start_with_slow_kept, uffd));
			helper = sh->helper;
			n = threads_of(helper);
			CHECK(by_kill() && reap(vmm, NULL));
			/* Two are closed side by side, if there are two threads. */
			CHECK(UNTIL(deadline, in_call(helper, __NR_close) == (slow < n ? slow : n)));
			CHECK(UNTIL(deadline, shut(0)));
			CHECK(!mm_held());
			if (n > slow)	/* whoever is left does the rest */
				CHECK(UNTIL(deadline, shut(1) && rss_kib(helper) < HELD_MIB * 1024L / 2));
			else {
				CHECK(!shut(1));
				CHECK_INT(rss_kib(helper), >=, HELD_MIB * 1024L);
			}
			CHECK(!shut(2));
			CHECK_INT(in_call(helper, __NR_close), ==, slow < n ? slow : n);
			/* The server answers, or at last is no more. */
			if (chosen && slow == 2)
				umount2(mounted_file, MNT_FORCE);
			else
				sh->go = 1;
			CHECK(UNTIL(deadline, shut(2)));
			CHECK(shut(1));
			CHECK_INT(rss_kib(helper), ==, 0);
			CHECK(leaves(helper));
			close_gates();
		}
	return NULL;
}

/* Where nothing is released early, no sign may say that it is. */
static enum { NO_MUNMAP, NO_TIMER, IN_VFORK, LATE_KINDS } late;

static void start_late(void)
{
	int fds[2], i;

	chosen = late == IN_VFORK;
	make_held_ram(late == NO_MUNMAP);
	for (i = 0; i < 2; i++)
		fds[i] = gates[i][1];
	MUST_INT(async_teardown_keep(fds, 2), ==, 0);
	if (late != IN_VFORK)
		filter_one(late == NO_TIMER ? __NR_timer_create : __NR_munmap, ERRNO | EPERM);
	start();
	if (late == IN_VFORK && !vfork()) {
		/* It has the memory, and none of the pipes. */
		for (i = 0; i < 2; i++)
			close(fds[i]);
		sh->target = getpid();
		ready();
		for (;;)
			pause();
	}
}

static const char *kept_to_the_end(void)
{
	int uffd[2], none = 0;
	pid_t helper;

	for (late = NO_MUNMAP; late < LATE_KINDS; late++) {
		TRY(spawn_held(start_late, uffd));
		helper = sh->helper;
		CHECK(by_kill() && reap(vmm, NULL));
		if (sh->second) {	/* here the RAM is freed all the same */
			CHECK(UNTIL(deadline, holds(uffd[1]) && in_call(helper, __NR_madvise) > 0));
			CHECK(!shut(0) && !shut(1));
			CHECK_INT(rss_kib(helper), >=, HELD_MIB * 1024L);
			CHECK(UNTIL(deadline, ({ let_go(uffd[1]); shut(0); })));
		} else
			none |= late == NO_MUNMAP;
		/* The helper has let go of the memory. */
		CHECK(UNTIL(deadline, shut(0)));
		CHECK_INT(rss_kib(helper), ==, 0);
		CHECK(UNTIL(deadline, shut(1)) && leaves(helper));
		if (late == IN_VFORK) {
			CHECK(mm_held());
			CHECK_INT(rss_kib(sh->target), >=, HELD_MIB * 1024L);
			CHECK(!signal_one(sh->target, SIGKILL) && reap(sh->target, NULL));
		}
		CHECK(mm_freed());
		close(uffd[0]);
		close(uffd[1]);
		close_gates();
	}
	if (none)
		SKIP(NO_USERFAULTFD "; the rest was tried");
	return NULL;
}

/*
 * Reading the memory of a process, as monitors do in /proc/PID/smaps, keeps it from being torn
 * down when its last user leaves.  This reader stays in the midst of it: what it has read
 * goes to a page that only the judge can bring.
 */
static char *missing;

static void *read_memory(void *arg)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", *(pid_t *)arg);
	if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return NULL;
	sh->passed = (int)pread(fd, missing, 1, (off_t)(uintptr_t)&atd_shared);
	close(fd);
	return NULL;
}

static int shared_ram_is_told;

static void start_with_shared_ram(void)
{
	int fds[2] = { gates[0][1], gates[1][1] }, fd = make_file(32);

	ram_size = 32 << 20;
	ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, fd, 0);
	MUST(ram != MAP_FAILED && !close(fd));
	if (shared_ram_is_told) {
		MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
		MUST_INT(async_teardown_keep(fds, 2), ==, 0);
	}
	start();
}

/* With RAM or kept descriptors the helper unmaps all by itself, whoever else reads. */
static const char *read_meanwhile(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .range = { 0, page }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero = { .range = { 0, page } };
	int uffd, kept_uffd[2];
	pthread_t reader;
	pid_t helper;

	TRY(mount_tmpfs());
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))	/* this one holds the kernel */
		SKIP_ROOT(NO_USERFAULTFD);
	for (shared_ram_is_told = 0; shared_ram_is_told < 2; shared_ram_is_told++) {
		missing = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(missing != MAP_FAILED);
		reg.range.start = zero.range.start = (uintptr_t)missing;
		CHECK(!ioctl(uffd, UFFDIO_REGISTER, &reg));
		TRY(spawn_held(start_with_shared_ram, kept_uffd));
		helper = sh->helper;
		CHECK(!pthread_create(&reader, NULL, read_memory, &helper));
		CHECK(UNTIL(deadline, holds(uffd)));
		CHECK(by_kill() && reap(vmm, NULL));
		if (shared_ram_is_told) {
			CHECK(UNTIL(deadline, shut(1)));
			CHECK(!mm_held());
			CHECK_INT(used_mib(), ==, 0);
		}
		CHECK(leaves(helper));
		if (!shared_ram_is_told) {
			CHECK(mm_held());
			CHECK_INT(used_mib(), >=, 32);
		}
		CHECK_INT(sh->passed, ==, 0);	/* still reading */
		let_go(uffd);
		CHECK(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
		CHECK(!pthread_join(reader, NULL));
		CHECK_INT(sh->passed, ==, 1);
		CHECK(mm_freed() && UNTIL(deadline, used_mib() == 0));
		munmap(missing, page);
		close_gates();
	}
	return NULL;
}

/*
 * A sign says what it says, in whatever order the calls came, as long as none of them said an
 * error.  r, f: ram, and forget it; k, n: keep both pipes, and nothing; t: threads; s, p: start
 * and stop; x: somebody kills the helper; c: the VMM goes on as a child of fork.
 */
static char order[13];

static void go_on_in_child(void)
{
	const pid_t parent = getpid();

	sh->daemon = 1;
	if (fork()) {
		async_teardown_stop();
		_exit(0);
	}
	MUST(UNTIL(deadline, getppid() != parent));
	sh->target = getpid();
}

/* Sets sh->second if the pipes are kept, and sh->helper if there is one. */
static void call_in_order(void)
{
	const int pipes[] = { gates[0][1], gates[1][1] };
	siginfo_t dead;
	const char *c;
	int ret;

	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	for (c = order; *c; c++)
		switch (*c) {
		case 'r': MUST_INT(async_teardown_ram(ram, ram_size), ==, 0); break;
		case 'f': async_teardown_ram(ram, 0); break;
		case 'k':
		case 'n':
			ret = async_teardown_keep(pipes, *c == 'k' ? 2 : 0);
			if (ret == 0)
				sh->second = *c == 'k';
			else
				MUST_INT(ret, ==, -EBUSY);
			break;
		case 't': async_teardown_threads(1 + (c - order) % 4); break;
		case 's': start(); break;
		case 'p': MUST_INT(async_teardown_stop(), ==, 0); sh->helper = 0; break;
		case 'x':
			if (!signal_one(sh->helper, SIGKILL))	/* all of its threads */
				MUST(!waitid(P_PID, (id_t)sh->helper, &dead, WEXITED | WNOWAIT | __WALL));
			sh->helper = 0;
			break;
		case 'c': go_on_in_child(); sh->helper = 0; break;
		}
}

static const char *after_that_order(void)
{
	pid_t helper;

	TRY(open_gates());
	TRY(spawn(call_in_order));
	leave_gates();
	if (sh->target)
		vmm = sh->target;
	while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
		;	/* those that it was before */
	helper = sh->helper;
	CHECK(mm_held() && !shut(0) && !shut(1));
	CHECK(!helper || freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	if (!helper) {		/* they come after everything */
		CHECK(shut(0) && shut(1));
		CHECK(!mm_held());
	} else if (!sh->second)
		CHECK(shut(0) && shut(1));
	else {
		CHECK(!shut(0) && !shut(1));
		CHECK(mm_held());
		CHECK_INT(rss_kib(helper), >=, mib * 1024L);
		CHECK(!signal_one(helper, SIGCONT));
		CHECK(UNTIL(deadline, shut(0)));
		CHECK(!mm_held());
		CHECK(UNTIL(deadline, shut(1)));
		CHECK_INT(rss_kib(helper), ==, 0);
	}
	CHECK(!helper || (!signal_one(helper, SIGCONT) && gone(helper)));
	CHECK(UNTIL(deadline, waitpid(-1, NULL, WNOHANG | __WALL) < 0));	/* also who was killed */
	close_gates();
	return NULL;
}

static const char *signs_in_any_order(void)
{
	static const char *const some[] = { "rks", "sk", "srks", "rskr", "ksks", "knks", "sknks", "rksc", "rkscs",
		"skcs", "sxks", "rkspx", "rksx", "rksp", "kst", "" };
	const int n = sizeof(some) / sizeof(*some);
	unsigned seed = 1, j;
	const char *r;
	int i;

	for (i = 0; i < n + effort(200); i++) {
		memset(order, 0, sizeof(order));
		for (j = 0; i >= n && j < 4 + (unsigned)i % 9; j++) {
			seed = seed * 1103515245 + 12345;
			order[j] = "rrfkkkntsssspxc"[(seed >> 16) % 15];
		}
		if (i < n)
			strcpy(order, some[i]);
		r = after_that_order();
		if (r) {
			printf("# after %s:\n", order);
			return r;
		}
	}
	return NULL;
}

static void keep_beside_helper(void)
{
	const int fd = 2;
	pid_t child;

	MUST_INT(async_teardown_keep(&fd, 1), ==, 0);
	atd_shared.lock = getpid() | ATD_WANTED;	/* as if two threads were in start */
	MUST_INT(async_teardown_keep(&fd, 1), ==, -EBUSY);
	atd_shared.lock = 0;
	start();
	MUST_INT(async_teardown_keep(&fd, 1), ==, -EBUSY);
	MUST_INT(async_teardown_keep(NULL, 0), ==, -EBUSY);
	child = fork();
	if (!child)
		_exit(async_teardown_keep(&fd, 1) || async_teardown_start() < 0 ||
			async_teardown_keep(&fd, 1) != -EBUSY || async_teardown_stop());
	MUST(succeeds(child));
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST_INT(async_teardown_keep(NULL, 0), ==, 0);
	if (kill_clears())
		MUST_INT(async_teardown_keep(&fd, 1), ==, 0);
	start();
	MUST_INT(async_teardown_keep(&fd, 1), ==, -EBUSY);
}

static const char *keep_says_busy(void)
{
	TRY(spawn(keep_beside_helper));
	return killed_asynchronously();
}

static void keep_wrong(void)
{
	int fds[9] = { 0, 0, 0, 0, 0, 0, 0, 0, 0 }, bad = -1, closed = 500;
	struct rlimit few = { 0, 0 };

	MUST_INT(async_teardown_keep(fds, 9), ==, -EINVAL);
	MUST_INT(async_teardown_keep(fds, -1), ==, -EINVAL);
	MUST_INT(async_teardown_keep(fds, 2), ==, -EINVAL);	/* twice the same */
	MUST_INT(async_teardown_keep(&bad, 1), ==, -EBADF);
	close(closed);
	MUST_INT(async_teardown_keep(&closed, 1), ==, 0);
	fails_with(-EBADF);
	MUST(!setrlimit(RLIMIT_NOFILE, &few));
	fails_with(-EBADF);
	fds[0] = 0, fds[1] = 2;
	MUST_INT(async_teardown_keep(fds, 2), ==, 0);
	start();
	MUST_INT(async_teardown_stop(), ==, 0);
	MUST_INT(async_teardown_keep(fds, 0), ==, 0);
	start();
}

static const char *keeps_what_is_open(void)
{
	TRY(spawn(keep_wrong));
	CHECK_INT(open_files(sh->helper), <=, own_files(sh->helper));
	return killed_asynchronously();
}

/* A kept socket carries what the VMM comes to have later. */
static void start_with_socket(void)
{
	int pair[2], kept[2], fd, i;

	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	kept[0] = pair[1];
	kept[1] = gates[0][1];
	MUST_INT(async_teardown_keep(kept, 2), ==, 0);
	start();
	close(pair[1]);
	for (i = 0; i < 16; i++) {
		fd = make_file(2);
		send_fd(pair[0], fd);
		close(fd);
	}
}

static const char *keeps_in_socket(void)
{
	pid_t helper;

	TRY(mount_tmpfs());
	CHECK(!pipe(gates[0]));
	TRY(spawn(start_with_socket));
	close(gates[0][1]);
	helper = sh->helper;
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK_INT(used_mib(), >=, 32);
	CHECK(!shut(0));
	CHECK(!signal_one(helper, SIGCONT));
	CHECK(UNTIL(deadline, shut(0)));
	CHECK_INT(used_mib(), ==, 0);
	CHECK(gone(helper));
	return NULL;
}

#if __has_include(<asm/kvm.h>)
#include <linux/kvm.h>

/* linux/kvm.h may be older than Linux 6.18, which made these for guests of all kinds. */
struct guest_memfd { __u64 size, flags, reserved[6]; };
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd)
enum { GUEST_MEMFD_FLAGS = 244, MMAP_AND_INIT_SHARED = 3, MEMFD_SIZE = 16 << 20 };

static int memfd_kvm;

static int make_guest_memfd(int vm)
{
	struct guest_memfd memory = { MEMFD_SIZE, MMAP_AND_INIT_SHARED, { 0 } };
	int fd = -1;

	if ((ioctl(vm, KVM_CHECK_EXTENSION, GUEST_MEMFD_FLAGS) & MMAP_AND_INIT_SHARED) == MMAP_AND_INIT_SHARED)
		fd = ioctl(vm, CREATE_GUEST_MEMFD, &memory);
	if (fd >= 0)
		MUST(!fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, MEMFD_SIZE));
	return fd;
}

/* A guest whose memory only descriptors hold, and what keeps it while it is mapped;
 * sh->second where KVM has no such memory. */
static void hold_guest_memfds(void)
{
	int fds[4], vm, cpu, size = ioctl(memfd_kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	MUST_INT((vm = ioctl(memfd_kvm, KVM_CREATE_VM, 0)), >=, 0);
	fds[0] = gates[0][1];
	fds[1] = make_guest_memfd(vm);
	fds[2] = make_guest_memfd(vm);
	fds[3] = gates[1][1];
	sh->second = fds[1] < 0 || fds[2] < 0;
	if (!sh->second) {
		MUST_INT((cpu = ioctl(vm, KVM_CREATE_VCPU, 0)), >=, 0);
		MUST(mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, cpu, 0) != MAP_FAILED);
		MUST_INT(async_teardown_keep(fds, 4), ==, 0);
	}
	start();
}

/* A guest_memfd holds its guest in KVM: that goes when the last of them is closed. */
static const char *guest_memfd(void)
{
	pid_t helper;
	int i, seen;

	memfd_kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (memfd_kvm < 0)
		return cannot_open("/dev/kvm");
	seen = guests_are_seen();
	for (i = 0; i < 2; i++)
		CHECK(!pipe(gates[i]));
	TRY(spawn(hold_guest_memfds));
	for (i = 0; i < 2; i++)
		close(gates[i][1]);
	helper = sh->helper;
	if (sh->second) {
		TRY(killed_and_gone());
		SKIP("needs a KVM with guest_memfds for all guests, as of Linux 6.18");
	}
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(!seen || guest_exists());
	CHECK(!shut(0) && !shut(1));
	CHECK(!signal_one(helper, SIGCONT));
	CHECK(UNTIL(deadline, shut(1)));
	CHECK(shut(0) && !guest_exists());	/* what was given before it is gone */
	CHECK(gone(helper));
	if (!seen)
		SKIP_ROOT("no debugfs: a container needs CAP_SYS_ADMIN; the rest was tried");
	return NULL;
}
#else
static const char *guest_memfd(void)
{
	SKIP("no KVM for this architecture");
}
#endif

static const struct test keep_tests[] = {
	{ "keeps", keeps, "memory behind a kept tmpfs file, mapped memory, both: EOF of a pipe kept last" },
	{ "signs", signs, "a pipe kept first: EOF when devices are free, no RAM is; one kept last: when all is back" },
	{ "slow_close", slow_close, "kept files whose server does not answer hold up one thread each, and the one kept last" },
	{ "kept_to_the_end", kept_to_the_end, "nothing is released early: no kept one closes before the memory is gone" },
	{ "read_meanwhile", read_meanwhile, "somebody reads the memory for ever: with RAM and a kept pipe all is back all the same" },
	{ "signs_in_any_order", signs_in_any_order, "ram, keep, threads, start, stop, fork in any order without an error: the signs are true" },
	{ "keep_says_busy", keep_says_busy, "keep says -EBUSY while the caller's helper lives, or is being started" },
	{ "keeps_what_is_open", keeps_what_is_open, "-EBADF for what is not open, and other errors of keep" },
	{ "keeps_in_socket", keeps_in_socket, "files that were sent to a kept socket after start" },
	{ "guest_memfd", guest_memfd, "a real guest_memfd, kept: reaped before it is freed, KVM gone before the end of file" },
	{ NULL, NULL, NULL }
};
