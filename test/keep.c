/*
 * keep.c - async_teardown_keep: the helper frees what is behind kept descriptors, in order
 *
 * For memory that only a descriptor holds, a file of a tmpfs stands; a real guest_memfd, with
 * KVM, is the last test.  Which descriptors may be kept, and what keep and start say of
 * others.
 *
 * A new case: a VMM that keeps a pipe of gates[] before or after what it is about, and a
 * judge that asks shut(); plus its line in the table below.
 */
#include <sys/statfs.h>

static long used_mib(void)
{
	struct statfs s;

	return statfs(tmpfs, &s) ? -1 : (long)((uint64_t)(s.f_blocks - s.f_bfree) * (uint64_t)s.f_bsize >> 20);
}

static int make_file(int n)
{
	static char block[1 << 20];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/XXXXXX", tmpfs);
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
	MUST_INT(async_teardown_keep(NULL, 0), ==, 0);	/* is for the next start */
}

static int shut(int i)
{
	struct pollfd p = { gates[i][0], POLLIN, 0 };

	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

static const char *keeps(void)
{
	pid_t helper;
	int i;

	TRY(mount_tmpfs());
	for (kind = 0; kind < 5; kind++) {
		for (i = 0; i < 3; i++)
			CHECK(!pipe(gates[i]));
		TRY(spawn(start_with_kept));
		helper = sh->helper;
		for (i = 0; i < 3; i++)
			close(gates[i][1]);
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
		for (i = 0; i < 3; i++)
			close(gates[i][0]);
	}
	return NULL;
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

#if __has_include(<linux/kvm.h>)
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
		SKIP("no /dev/kvm; in \"keeps\" a file stands for it");
	seen = guests_are_seen();
	for (i = 0; i < 2; i++)
		CHECK(!pipe(gates[i]));
	TRY(spawn(hold_guest_memfds));
	for (i = 0; i < 2; i++)
		close(gates[i][1]);
	helper = sh->helper;
	if (sh->second) {
		TRY(killed_and_gone());
		SKIP("KVM has no guest_memfd here; in \"keeps\" a file stands for it");
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
		SKIP("no debugfs in which to see KVM's guest; the order of the descriptors was tried");
	return NULL;
}
#else
static const char *guest_memfd(void)
{
	SKIP("needs linux/kvm.h");
}
#endif

static const struct test keep_tests[] = {
	{ "keeps", keeps, "memory behind a kept tmpfs file, mapped memory, both: EOF of a pipe kept last" },
	{ "keeps_what_is_open", keeps_what_is_open, "-EBADF for what is not open, and other errors of keep" },
	{ "keeps_in_socket", keeps_in_socket, "files that were sent to a kept socket after start" },
	{ "guest_memfd", guest_memfd, "a real guest_memfd, kept: reaped before it is freed, KVM gone before the end of file" },
	{ NULL, NULL, NULL }
};
