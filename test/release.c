/*
 * release.c - early release, which async_teardown_ram brings: what others may be waiting for
 * is free before the RAM, and several threads free the RAM
 *
 * Kinds of RAM and of mappings beside it (huge, locked, sealed, shared, in gaps and all over
 * the address space).  Devices, sockets and locks that go first.  The helper's threads and
 * stacks.  What goes only with the helper, and what holds the helper up.  How the code is
 * linked, run.sh varies.  Memory of which others run is in forking.c, KVM in kernel.c.
 *
 * A new kind of memory: a word in kinds[] and its branch in start_with_kind(); what the
 * helper's walk meets beside the RAM: the same in layouts[] and lay_out().  Another case:
 * TRY(spawn_with_devices(&uffd)) and a look while the RAM waits for the judge to read from
 * the userfaultfd; plus its line in the table below.
 */
#include <sys/personality.h>
#include <linux/if_tun.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include "ring.h"

static int all_in_madvise(pid_t helper)
{
	return in_call(helper, __NR_madvise) == threads_of(helper);
}

#define IS(s) (!strcmp(k, s))

/*
 * What the helper's walk meets beside a device (the page of the lock) and the RAM: what the
 * kernel does not split, or does not unmap.  Each layout also with a sealed page above all,
 * for then nothing is unmapped in one piece.
 */
static const char *const layouts[] = {
	"behind a moved vdso", "RAM cuts a moved vdso", "a vdso across 64 GiB",
	"behind a perf buffer", "RAM cuts a perf buffer", "behind a sealed area", "between sealed areas",
};
enum { LAYOUTS = sizeof(layouts) / sizeof(*layouts) };
static int layout, sealed_above;

/* In more than 4096 pages that are refused, not each is tried: a single one between two
 * such areas may be missed. */
enum { SEALED_EXACTLY = 8 << 20 };

static void move_lock(char *at)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);

	MUST(mremap(lock_page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
	lock_page = at;
}

/* 0 where there is none.  No clock may be read from now on: libc would call the vdso where
 * it was.  On 32 bits libc calls all of the kernel by it. */
static size_t move_vdso(char *at)
{
	unsigned long from = 0, to = 0;
	char line[256];
	FILE *f = fopen("/proc/self/maps", "r");

	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "[vdso]"))
			MUST(sscanf(line, "%lx-%lx", &from, &to) == 2);
	if (f)
		fclose(f);
	if (sizeof(long) == 4 || !from ||
	    mremap((void *)from, to - from, to - from, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED)
		return 0;
	return to - from;
}

static size_t map_perf_buffer(char *at)
{
	const size_t size = 9 * (size_t)sysconf(_SC_PAGESIZE);
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr),
		.config = PERF_COUNT_SW_CPU_CLOCK, .sample_period = 1000000000 };
	int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);

	if (fd >= 0 && mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at)
		return size;
	return 0;
}

static size_t map_sealed(char *at, size_t size)
{
	MUST(mmap(at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == at);
	return syscall(462 /* mseal */, at, size, 0) ? 0 : size;
}

/* Sets sh->second where the machine cannot do that. */
static void lay_out(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE), wide = (size_t)1 << (sizeof(long) == 8 ? 36 : 27);
	const char *k = layouts[layout];
	size_t size = 0;
	char *at;

	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	sh->attempt = hold_ram(chan[1]);
	MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	/* Nothing is there, nor for some way below and above. */
	at = mmap(NULL, 4 * wide, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED) {		/* addresses of 39 bits, say */
		sh->second = 1;
		start();
		return;
	}
	MUST(!munmap(at, 4 * wide));
	at = (char *)(((uintptr_t)at + wide) & -wide);
	if (sealed_above && !map_sealed(at + 2 * wide, page))
		sh->second = 1;
	at += IS("a vdso across 64 GiB") ? wide - page : page;

	if (strstr(k, "vdso"))
		size = move_vdso(at);
	else if (strstr(k, "perf"))
		size = map_perf_buffer(at);
	else if (strstr(k, "sealed"))
		size = map_sealed(at, IS("behind a sealed area") ? (64 << 20) + 5 * page : SEALED_EXACTLY);
	if (size)
		move_lock(at + size);
	else
		sh->second = 1;
	if (IS("between sealed areas") && size)
		map_sealed(at + size + page, SEALED_EXACTLY);
	if (strstr(k, "RAM cuts"))
		MUST_INT(async_teardown_ram(at, page), ==, 0);
	start();
}

/* When the RAM's turn comes, the device is free. */
static const char *walks(int uffd, pid_t helper, long ram_kib)
{
	CHECK(UNTIL(deadline, in_call(helper, __NR_madvise) > 0));
	CHECK(!mm_held());
	CHECK_INT(rss_kib(helper), >=, ram_kib);
	CHECK(reads_on(uffd, helper));
	close(uffd);
	return NULL;
}

/* What the machine cannot do; the rest is tried. */
static char lacking[256];

static void lacks(const char *what)
{
	const size_t n = strlen(lacking);

	if (strstr(lacking, what))
		return;
	snprintf(lacking + n, sizeof(lacking) - n, "%s%s", n ? ", " : "SKIP the machine, the kernel or this user's limits lack: ", what);
}

static const char *unsplittable(void)
{
	const char *wrong = NULL;
	int uffd;

	for (sealed_above = 0; sealed_above < 2; sealed_above++)
		for (layout = 0; layout < LAYOUTS && !wrong; layout++) {
			TRY(spawn_sending(lay_out, &uffd, 1));
			if (!sh->attempt)
				SKIP(NO_USERFAULTFD);
			if (sh->second)
				lacks(layouts[layout]);
			CHECK(by_kill() && reap(vmm, NULL));
			wrong = walks(uffd, sh->helper, mib * 1024L);
			if (wrong)
				printf("# %s%s\n", layouts[layout], sealed_above ? ", a sealed page above" : "");
		}
	return wrong ? wrong : *lacking ? lacking : NULL;
}

static int open_tap(void)
{
	struct ifreq req;
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	memset(&req, 0, sizeof(req));
	snprintf(req.ifr_name, sizeof(req.ifr_name), "atd%d", sh->target);
	req.ifr_flags = IFF_TAP | IFF_NO_PI;
	if (fd >= 0 && ioctl(fd, TUNSETIFF, &req)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* A ring that a packet socket shares with the kernel keeps the socket. */
static int packet_ring(void)
{
	struct { unsigned block_size, blocks, frame_size, frames; } ring = { 65536, 1, 2048, 32 };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	struct stat st;

	if (fd < 0 || setsockopt(fd, 263 /* SOL_PACKET */, 5 /* PACKET_RX_RING */, &ring, sizeof(ring)) ||
	    mmap(NULL, 65536, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED || fstat(fd, &st))
		return 0;
	sh->attempt = (int)st.st_ino;
	return 1;
}

static int packet_exists(void)
{
	char *line = strtok(slurp("/proc/net/packet", 0), "\n"), *last;
	long inode;

	for (; line; line = strtok(NULL, "\n"))		/* in the last column */
		for (inode = 0; *line; line = last) {
			inode = strtol(line, &last, 10);
			if (last == line)
				last++;
			if (inode == sh->attempt && !last[strspn(last, " ")])
				return 1;
		}
	return 0;
}

enum { HELD = 1, POLLED = 2, TAP = 4, PACKET = 8 };
static int peer[2], chunks, refuse_unshare;

static void start_with_devices(void)
{
	int tap;

	close(chan[0]);
	close(peer[0]);
	make_ram((size_t)chunks << 26);
	if (chunks == 1)
		memset(ram, 1, ram_size);
	sh->second = hold_ram(chan[1]) * HELD | (ring_poll(peer[1]) == 0) * POLLED;
	sh->target = getpid();
	if (!geteuid() && (tap = open_tap()) >= 0 && ring_poll(tap) == 0)
		sh->second |= TAP;
	if (packet_ring())
		sh->second |= PACKET;
	MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	if (refuse_unshare)
		filter_one(__NR_unshare, ERRNO | EPERM);
	start();
}

static const char *spawn_with_devices(int *uffd)
{
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, peer));
	TRY(spawn_sending(start_with_devices, uffd, 1));
	close(peer[1]);
	return NULL;
}

static const char *release_first(void)
{
	pid_t helper;
	int uffd, tap = -1;
	long before;

	chunks = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP(NO_USERFAULTFD);
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	/* reaped, and all is as it was */
	CHECK(mm_held());
	before = rss_kib(helper);
	CHECK_INT(before, >=, 64 * 1024L + mib * 1024L);
	if (sh->second & POLLED)
		CHECK(!has_ended(peer[0]));
	if (sh->second & TAP)
		CHECK(open_tap() < 0 && errno == EBUSY);
	if (sh->second & PACKET)
		CHECK(packet_exists());
	CHECK(!signal_one(helper, SIGCONT));
	/* released, and the RAM is still there */
	CHECK(mm_freed());
	CHECK(UNTIL(deadline, has_ended(peer[0])));
	if (sh->second & TAP)
		CHECK(UNTIL(deadline, (tap = open_tap()) >= 0));
	if (sh->second & PACKET)
		CHECK(UNTIL(deadline, !packet_exists()));
	CHECK_INT(rss_kib(helper), >=, 64 * 1024L);
	CHECK_INT(rss_kib(helper), <, before - mib * 1024L * 3 / 4);	/* the rest is not */
	CHECK(state(helper) != 'Z' && state(helper));
	/* back */
	CHECK(reads_on(uffd, helper));
	close(tap);
	if (!(sh->second & POLLED))
		SKIP(NO_URING);
	if (!(sh->second & TAP))
		SKIP_ROOT(NO_NETWORK);
	return NULL;
}

static const char *threads(void)
{
	char path[64], text[64];
	const char *now_;
	struct dirent *e;
	pid_t helper;
	DIR *d;
	int uffd;

	chunks = 2 * ASYNC_TEARDOWN_THREADS;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	CHECK(threads_of(helper) == (has_pidfd(helper) ? ASYNC_TEARDOWN_THREADS : 1));
	snprintf(path, sizeof(path), "/proc/%d/task", helper);
	CHECK((d = opendir(path)));
	while ((e = readdir(d))) {
		pid_t tid = atoi(e->d_name);

		if (!tid)
			continue;
		CHECK(!has_capabilities(tid));
		CHECK_INT(atoi(status(tid, "Seccomp")), ==, 2);
		now_ = status(tid, "NoNewPrivs");
		CHECK(!*now_ || atoi(now_) == 1);
		snprintf(text, sizeof(text), "cleanup/%d", vmm);
		CHECK(!strcmp(status(tid, "Name"), text));
	}
	closedir(d);
	if (uffd < 0)
		SKIP(NO_USERFAULTFD);
	CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
	CHECK(UNTIL(deadline, all_in_madvise(helper)));
	CHECK(reads_on(uffd, helper));
	return NULL;
}

/* As containers do: whether others use the memory is not known then. */
static const char *unshare_refused(void)
{
	pid_t helper;
	int uffd;

	if (syscall(ATD_NR_CLOSE_RANGE, 1 << 20, 1 << 20, 0))
		SKIP("needs Linux 5.9");
	chunks = refuse_unshare = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP(NO_USERFAULTFD);
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(mm_freed());
	CHECK_INT(rss_kib(helper), >=, 64 * 1024L);	/* released all the same */
	CHECK(reads_on(uffd, helper));
	return NULL;
}

/*
 * What is the helper's as a process, to its end: its executable, of which the VMM
 * has one of its own here, and its namespaces.
 */
static char copy[40];		/* in no directory; /proc/JUDGE/fd/NUMBER */

/* What that VMM tells the judge, after the userfaultfd: is there one, and has the VMM a
 * network namespace of its own? */
struct lasting { int helper, held, apart; };

static int lasting(const char *how)
{
	struct lasting told = { 0, 0, 0 };
	char *page;

	make_ram(1 << 26);
	memset(ram, 1, ram_size);
	if (*how > '1') {
		lockfd = 4;
		hold_memory();
		if (*how == 's') {
			page = mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			MUST(page != MAP_FAILED);
			syscall(462 /* mseal */, page, (size_t)sysconf(_SC_PAGESIZE), 0);
		}
	} else
		told.apart = !unshare(CLONE_NEWNET);
	told.held = hold_ram(3);
	if (!told.held)		/* something else, to keep the order */
		send_fd(3, 3);
	if (*how != '0')
		MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	told.helper = async_teardown_start();
	MUST_INT(write(3, &told, sizeof(told)), ==, sizeof(told));
	for (;;)
		pause();
}

static const char *copy_executable(void)
{
	char block[65536], path[] = "/tmp/async-teardown-XXXXXX";
	ssize_t n;
	int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), to = mkostemp(path, O_CLOEXEC);

	CHECK_INT(to, >=, 0);
	unlink(path);
	while ((n = read(from, block, sizeof(block))) > 0)
		CHECK_INT(write(to, block, (size_t)n), ==, n);
	CHECK(n == 0 && !fchmod(to, 0700));
	close(from);
	snprintf(copy, sizeof(copy), "/proc/%d/fd/%d", getpid(), to);
	CHECK_INT(from = open(copy, O_RDONLY | O_CLOEXEC), >=, 0);
	close(to);		/* what is open for writing cannot be executed */
	snprintf(copy, sizeof(copy), "/proc/%d/fd/%d", getpid(), from);
	return NULL;
}

static int is_busy(void)
{
	int fd = open(copy, O_WRONLY | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd < 0 && errno == ETXTBSY;
}

/* A pair of network devices, one of which is in the VMM's namespace. */
static int make_veth(const char *name)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg info;
		char attributes[256];
	} m;
	struct { struct nlmsghdr h; struct nlmsgerr error; char rest[512]; } answer;
	struct rtattr *link, *data, *peer_info;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	memset(&m, 0, sizeof(m));
	m.h.nlmsg_len = NLMSG_LENGTH(sizeof(m.info));
	m.h.nlmsg_type = RTM_NEWLINK;
	m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
#define END ((struct rtattr *)(void *)((char *)&m + m.h.nlmsg_len))
#define ADD(type, from, n) (END->rta_type = (type), END->rta_len = (unsigned short)RTA_LENGTH(n), \
	memcpy(RTA_DATA(END), from, n), m.h.nlmsg_len += RTA_SPACE((unsigned)(n)))
#define CLOSE(a) ((a)->rta_len = (unsigned short)((char *)END - (char *)(a)))
	ADD(IFLA_IFNAME, name, strlen(name) + 1);
	link = END, ADD(IFLA_LINKINFO, "", 0);
	ADD(IFLA_INFO_KIND, "veth", 4);
	data = END, ADD(IFLA_INFO_DATA, "", 0);
	peer_info = END, ADD(1 /* VETH_INFO_PEER */, &m.info, sizeof(m.info));
	ADD(IFLA_NET_NS_PID, &vmm, sizeof(vmm));
	CLOSE(peer_info);
	CLOSE(data);
	CLOSE(link);
#undef END
#undef ADD
#undef CLOSE
	if (fd < 0 || send(fd, &m, m.h.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
		return 0;
	close(fd);
	return answer.h.nlmsg_type == NLMSG_ERROR && answer.error.error == 0;
}

/* Is there an address space for the userfaultfd?  To ask it takes any address that a
 * process may have: older kernels look at that first. */
static int faults_in(int uffd)
{
	struct uffdio_zeropage z = { .range = { 1 << 30, (uint64_t)sysconf(_SC_PAGESIZE) } };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &z) == 0 || errno != ESRCH;
}

static const char *lasts(const char *with_ram)
{
	char name[16];
	struct lasting told;
	pid_t helper;
	int uffd, veth;

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, chan));
	vmm = fork();
	if (!vmm) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(chan[1], 3);
		execl(copy, copy, "--lasting", with_ram, NULL);
		_exit(127);
	}
	close(chan[1]);
	CHECK(UNTIL(deadline, (uffd = receive_fd(chan[0])) >= 0));
	CHECK_INT(read(chan[0], &told, sizeof(told)), ==, sizeof(told));
	helper = told.helper;
	CHECK_INT(helper, >, 0);
	if (!told.held && *with_ram == '1') {
		CHECK(by_kill() && reap(vmm, NULL) && leaves(helper) && !is_busy());
		SKIP(NO_USERFAULTFD "; the rest was tried");
	}
	snprintf(name, sizeof(name), "atd%d", vmm);
	veth = told.apart && make_veth(name);
	CHECK(is_busy());
	if (*with_ram == '0')
		CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	if (*with_ram == '1')	/* all is released that will be */
		CHECK(UNTIL(deadline, in_call(helper, __NR_madvise) > 0));
	CHECK(is_busy() && (!told.held || faults_in(uffd)) && (!veth || if_nametoindex(name)));
	if (*with_ram == '0')
		CHECK(!signal_one(helper, SIGCONT) && leaves(helper));
	else
		CHECK(reads_on(uffd, helper));
	CHECK(!is_busy() && (!told.held || !faults_in(uffd)) && UNTIL(deadline, !if_nametoindex(name)));
	close(uffd);
	close(chan[0]);
	if (!veth)
		SKIP_ROOT(NO_NETWORK);
	return NULL;
}

/* Where addresses are given out from below, devices come to lie beside the vdso.  With a
 * sealed page nothing is unmapped in one piece. */
static const char *legacy_layout(void)
{
	struct lasting told;
	int i, uffd;

	for (i = 0; i < effort(20); i++) {
		close(lockfd);
		lockfd = memfd_create("lock", MFD_CLOEXEC);
		CHECK(lockfd >= 0 && !ftruncate(lockfd, 4096));
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, chan));
		vmm = fork();
		if (!vmm) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			lockfd = fcntl(lockfd, F_DUPFD, 10);
			dup2(chan[1], 3);
			dup2(lockfd, 4);
			personality(ADDR_COMPAT_LAYOUT);
			execl("/proc/self/exe", "scenarios", "--lasting", i % 2 ? "sealed" : "legacy", NULL);
			_exit(127);
		}
		close(chan[1]);
		CHECK(UNTIL(deadline, (uffd = receive_fd(chan[0])) >= 0));
		CHECK_INT(read(chan[0], &told, sizeof(told)), ==, sizeof(told));
		close(chan[0]);
		CHECK_INT(told.helper, >, 0);
		CHECK(mm_held());
		CHECK(by_kill() && reap(vmm, NULL));
		if (!told.held) {
			CHECK(gone(told.helper));
			SKIP(NO_USERFAULTFD);
		}
		TRY(walks(uffd, told.helper, 1 << 16));
	}
	return NULL;
}

static const char *lasts_to_the_end(void)
{
	const char *r;

	TRY(copy_executable());
	r = lasts("0");
	return !r || *r == 'S' ? lasts("1") : r;
}

static const char *hung_reader(void)
{
	pid_t helper;
	int uffd, st;

	chunks = 1;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	if (uffd < 0)
		SKIP(NO_USERFAULTFD);
	CHECK(by_kill() && reap(vmm, NULL) && mm_freed());
	CHECK(reap(helper, &st));	/* in a minute, whoever reads or not */
	return NULL;
}

static int filtered, told_late;

/* All that is RAM is held, and something else is a device. */
static void start_plainly(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE);
	char *device = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	MUST(device != MAP_FAILED);
	make_ram((size_t)2 * ASYNC_TEARDOWN_THREADS << 26);
	memset(ram, 1, 1 << 20);
	sh->second = hold(chan[1], device, page, ON_MUNMAP) && hold_ram(chan[1]);
	if (filtered)
		filter_one(__NR_acct, ERRNO | EPERM);	/* refuses nothing that matters */
	if (told_late)
		start();
	MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	if (!told_late)
		start();
}

static const char *spawn_plainly(int uffd[2])
{
	TRY(spawn_sending(start_plainly, uffd, 2));
	if (!sh->second) {
		close(uffd[0]);
		close(uffd[1]);
		TRY(killed_and_gone());
		SKIP(NO_USERFAULTFD);
	}
	return NULL;
}

/* Without waking them at the VMM's end: they would take CPUs from its parent and the
 * helper's first thread. */
static const char *woken_once(void)
{
	long before;
	pid_t helper;
	int uffd[2], others;

	TRY(spawn_plainly(uffd));
	helper = sh->helper;
	others = threads_of(helper) - 1;
	CHECK(!others || UNTIL(deadline, in_call(helper, __NR_ppoll) == others + 1));
	before = switches(helper) - thread_switches(helper);
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(UNTIL(deadline, holds(uffd[0]) && in_call(helper, __NR_munmap) == 1));
	CHECK_INT(in_call(helper, __NR_ppoll), ==, others);
	CHECK_INT(switches(helper) - thread_switches(helper), ==, before);
	let_go(uffd[0]);
	CHECK(UNTIL(deadline, all_in_madvise(helper)));
	CHECK(!mm_held());
	CHECK(reads_on(uffd[1], helper));
	close(uffd[0]);
	close(uffd[1]);
	if (!others)
		SKIP(NO_THREADS "; the rest was tried");
	return NULL;
}

static int in_bounds(int n)
{
	return n < 1 ? 1 : n > ASYNC_TEARDOWN_THREADS ? ASYNC_TEARDOWN_THREADS : n;
}

static void choose_threads(void)
{
	static const int n[] = { -1, 0, 1, 2, ASYNC_TEARDOWN_THREADS - 1, ASYNC_TEARDOWN_THREADS,
		ASYNC_TEARDOWN_THREADS + 1, INT_MAX, INT_MIN };
	int i, several;

	/* under a filter there is one thread if nothing is told */
	make_ram((size_t)mib << 20);
	MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	start();
	/* without a pidfd there is one, whatever was asked for */
	several = has_pidfd(sh->helper);
	MUST_INT(threads_of(sh->helper), ==, several ? ASYNC_TEARDOWN_THREADS : 1);
	for (i = 0; i < (int)(sizeof(n) / sizeof(*n)); i++) {
		MUST_INT(async_teardown_threads(n[i]), ==, in_bounds(n[i]));
		MUST_INT(async_teardown_stop(), ==, 0);
		start();
		MUST_INT(threads_of(sh->helper), ==, several ? in_bounds(n[i]) : 1);
		/* for the next one only */
		async_teardown_threads(in_bounds(n[i]) == 1 ? ASYNC_TEARDOWN_THREADS : 1);
		MUST_INT(async_teardown_start(), ==, sh->helper);
		MUST_INT(threads_of(sh->helper), ==, several ? in_bounds(n[i]) : 1);
	}
}

static const char *threads_are_chosen(void)
{
	TRY(spawn(choose_threads));
	return killed_asynchronously();
}

/* Nothing was told under which the release could have been tried: no other threads. */
static const char *told_under_filter(void)
{
	pid_t helper;
	int uffd[2];

	filtered = 1;
	for (told_late = 0; told_late < 2; told_late++) {
		TRY(spawn_plainly(uffd));
		helper = sh->helper;
		CHECK(threads_of(helper) == (has_pidfd(helper) && !told_late ? ASYNC_TEARDOWN_THREADS : 1));
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(UNTIL(deadline, holds(uffd[0])));
		let_go(uffd[0]);
		CHECK(UNTIL(deadline, all_in_madvise(helper)));
		CHECK(!mm_held());
		CHECK_INT(rss_kib(helper), >=, 1024);
		CHECK(reads_on(uffd[1], helper));
		close(uffd[0]);
		close(uffd[1]);
	}
	return NULL;
}

static int kind;
static const char *const kinds[] = {
	"none", "one", "as many as there may be", "overlapping", "unaligned", "stale", "removed", "longer than mapped",
	"around the image", "all there is", "before start", "locked", "huge", "memfd", "hugetlb",
	"1 GiB hugetlb", "sealed beside", "no access", "many mappings beside",
};
enum { KINDS = sizeof(kinds) / sizeof(*kinds) };

/* An address about as high as one may be told. */
#define LAST ((~0UL >> (sizeof(long) == 8 ? 9 : 0)) - 0x1ffff)

/* Sets sh->second where the machine cannot do that kind. */
static void start_with_kind(void)
{
	const size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)mib << 20;
	const char *k = kinds[kind];
	size_t sealed, part;
	char *p;
	int i, fd;

#define RAM(at, n) MUST_INT(async_teardown_ram(at, n), ==, 0)
	if (!IS("before start"))
		start();
	make_ram(size);
	memset(ram, 1, size);
	if (IS("one") || IS("before start"))
		RAM(ram, size);
	else if (IS("as many as there may be")) {
		part = size / ASYNC_TEARDOWN_RANGES;
		for (i = 0; i < ASYNC_TEARDOWN_RANGES; i++)
			RAM(ram + (size_t)i * part, part);
		MUST_INT(async_teardown_ram(ram + 1, 1), ==, -ENOSPC);
		RAM(ram, part);			/* it is there already */
		if (ASYNC_TEARDOWN_RANGES > 1)
			RAM(ram + part, 0);	/* room for another */
		else
			RAM(ram, 0);
		RAM(ram + 1, 1);
	} else if (IS("overlapping")) {
		RAM(ram, size / 2);
		RAM(ram + size / 4, size / 2);
		RAM(ram + size / 8, size / 8);
	} else if (IS("unaligned"))
		RAM(ram + 123, size - 1000);
	else if (IS("stale")) {
		RAM(ram, size);
		MUST(!munmap(ram, size / 2));
	} else if (IS("removed")) {
		RAM(ram, size);
		MUST_INT(async_teardown_ram(ram + page, 0), ==, -ENOENT);
		RAM(ram, 0);
		MUST_INT(async_teardown_ram(ram, 0), ==, -ENOENT);
	} else if (IS("longer than mapped"))
		RAM(ram, LAST - (uintptr_t)ram);
	else if (IS("around the image"))
		RAM((char *)((uintptr_t)&atd_shared & ~(uintptr_t)0xffff) - 0x10000, 0x400000);
	else if (IS("all there is"))
		RAM((void *)(uintptr_t)1, LAST - 1);
	else if (IS("locked")) {
		RAM(ram, size);
		sh->second = mlock(ram, size) != 0;
	} else if (IS("huge")) {
		make_ram(4 * size);
		madvise(ram, 4 * size, MADV_HUGEPAGE);
		memset(ram, 1, 4 * size);
		RAM(ram + page, 4 * size - 3 * page);
	} else if (IS("memfd")) {
		MUST((fd = memfd_create("ram", 0)) >= 0 && !ftruncate(fd, (off_t)size));
		ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		MUST(ram != MAP_FAILED);
		memset(ram, 1, size);
		RAM(ram, size);
	} else if (IS("hugetlb") || IS("1 GiB hugetlb")) {
		size_t huge = IS("hugetlb") ? 4 << 20 : (size_t)1 << 30;

		p = sizeof(long) == 4 ? MAP_FAILED : mmap(NULL, huge, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (IS("hugetlb") ? 0 : 30 << 26), -1, 0);
		sh->second = p == MAP_FAILED;
		if (!sh->second) {
			memset(p, 1, huge);
			/* the rest of a huge page cannot be unmapped */
			RAM(p + page, huge / 2);
		}
	} else if (IS("sealed beside")) {
		RAM(ram, size / 2);
		sh->second = syscall(462 /* mseal */, ram + 3 * size / 4, 5 * page, 0) != 0;
		/* and more than can be passed over page by page */
		sealed = (size_t)1 << (sizeof(long) == 4 || effort(100) < 10 ? 28 : 38);
		p = mmap(NULL, sealed, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p != MAP_FAILED)
			syscall(462, p, sealed, 0);
	} else if (IS("no access")) {
		RAM(ram, size);
		MUST(!mprotect(ram + size / 4, size / 4, PROT_NONE));
	} else if (IS("many mappings beside")) {
		for (i = 0; i < 5000; i++)
			if (mmap(NULL, page, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
				break;
		RAM(ram, size);
	}
	if (sizeof(long) == 8)	/* a tag, or nonsense */
		MUST_INT(async_teardown_ram(ram, 1UL << (8 * sizeof(long) - 8)), ==, -EINVAL);
	MUST_INT(async_teardown_ram(NULL, 1), ==, -EINVAL);
	MUST_INT(async_teardown_ram((void *)(uintptr_t)page, ~0UL), ==, -EINVAL);
	if (IS("before start"))
		start();
}

/* Blocks that are RAM and blocks that are not, in turn, or one range over all, whatever is
 * in it or not. */
enum { BLOCKS = 2 * ASYNC_TEARDOWN_RANGES, BLOCK_KIB = 256 };
static int one_range;

static void start_with_blocks(void)
{
	const size_t block = BLOCK_KIB << 10;
	int i;

	make_ram(BLOCKS * block);
	memset(ram, 1, ram_size);
	sh->second = hold_ram(chan[1]);
	if (one_range) {
		for (i = 1; i < BLOCKS; i += 2)
			MUST(!munmap(ram + (size_t)i * block, block));
		move_lock(ram + block);
		MUST_INT(async_teardown_ram(ram, ram_size), ==, 0);
	} else
		for (i = 0; i < BLOCKS; i += 2)
			MUST_INT(async_teardown_ram(ram + (size_t)i * block, block), ==, 0);
	MUST_INT(async_teardown_ram((void *)1, 1), ==, one_range && BLOCKS > 2 ? 0 : -ENOSPC);
	start();
}

static const char *ranges(void)
{
	const long told = BLOCKS / 2 * BLOCK_KIB;
	pid_t helper;
	int uffd;

	for (one_range = 0; one_range < 2; one_range++) {
		TRY(spawn_sending(start_with_blocks, &uffd, 1));
		helper = sh->helper;
		if (!sh->second) {
			TRY(killed_and_gone());
			SKIP(NO_USERFAULTFD);
		}
		CHECK(by_kill() && reap(vmm, NULL));
		CHECK(UNTIL(deadline, in_call(helper, __NR_madvise) > 0));
		/* What is in a range stays until the end, and nothing else does. */
		CHECK(mm_held() == one_range);
		CHECK_INT(rss_kib(helper), >=, told);
		CHECK_INT(rss_kib(helper), <, told + told / 2);
		CHECK(reads_on(uffd, helper) && mm_freed());
		close(uffd);
	}
	return NULL;
}

static void set_huge_pages(int n)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "w");

	if (f) {
		fprintf(f, "%d\n", n);
		fclose(f);
	}
}

static const char *ram_kinds(void)
{
	int pages = atoi(slurp("/proc/sys/vm/nr_hugepages", 0));
	pid_t helper;

	if (!pages) {
		sh->huge_pages = 1;
		set_huge_pages(8);
	}
	for (kind = 0; kind < KINDS; kind++) {
		TRY(spawn(start_with_kind));
		helper = sh->helper;
		if (sh->second)
			lacks(kinds[kind]);
		snprintf(sh->broken, sizeof(sh->broken), "RAM: %s", kinds[kind]);
		if (!by_kill() || !reap(vmm, NULL) || !gone(helper))
			return sh->broken;
	}
	return *lacking ? lacking : NULL;
}

static void change_ram_for_ever(void)
{
	int i, told = 0;

	make_ram((size_t)mib << 20);
	memset(ram, 1, ram_size);
	start();
	ready();
	for (i = 0; ; i++) {
		MUST_INT(async_teardown_ram(ram + (i % 4) * 8192, ram_size / 2), ==, 0);
		told |= 1 << i % 4;
		MUST_INT(async_teardown_ram(ram + (i % 3) * 8192, 0), ==, told & 1 << i % 3 ? 0 : -ENOENT);
		told &= ~(1 << i % 3);
	}
}

static const char *killed_in_ram(void)
{
	int i;

	for (i = 0; i < effort(60); i++) {
		TRY(spawn(change_ram_for_ever));
		usleep((unsigned)(i * 37 % 1000));
		TRY(killed_and_gone());
	}
	return NULL;
}

static const char *stopped_in_release(void)
{
	kind = 1;
	return stopped(start_with_kind, effort(60));
}

/* How many bytes of a stack have never been used. */
static int unused_of(const unsigned long *stack)
{
	int i;

	for (i = 0; i < ATD_WORDS && !stack[i]; i++)
		;
	return i * (int)sizeof(long);
}

/* As deep as it goes while it frees RAM; the address is the same in the judge. */
static const char *stack_is_enough(void)
{
	const int half = (int)sizeof(long) * (ATD_WORDS / 2);
	unsigned long stack[ATD_THREADS][ATD_WORDS];
	char path[64];
	pid_t helper;
	int fd, uffd;

	chunks = 2 * ASYNC_TEARDOWN_THREADS;
	TRY(spawn_with_devices(&uffd));
	helper = sh->helper;
	snprintf(path, sizeof(path), "/proc/%d/mem", helper);
	if ((fd = open(path, O_RDONLY)) < 0)
		SKIP(NO_TRACING);
	if (uffd >= 0)
		CHECK(by_kill() && reap(vmm, NULL) && mm_freed() && UNTIL(deadline, all_in_madvise(helper)));
	CHECK_INT(pread(fd, stack, sizeof(stack), (off_t)(uintptr_t)atd_shared.stack), ==, sizeof(stack));
	close(fd);
	if (getenv("VERBOSE"))
		printf("# %d bytes of the stack never used, of another thread's %d\n",
			unused_of(stack[ATD_THREADS - 1]), unused_of(stack[0]));
	CHECK_INT(unused_of(stack[ATD_THREADS - 1]), >=, half);
	CHECK_INT(unused_of(stack[0]), >=, half);
	if (uffd < 0) {
		TRY(killed_and_gone());
		SKIP(NO_USERFAULTFD "; the rest was tried");
	}
	CHECK(reads_on(uffd, helper));
	return NULL;
}

static const struct test release_tests[] = {
	{ "release_first", release_first, "RAM held up: socket in an io_uring, lock of a mapped file, TAP, packet ring are free before it" },
	{ "threads", threads, "its threads are named, sandboxed, and all free the RAM" },
	{ "woken_once", woken_once, "its other threads sleep until the first has released what is mapped" },
	{ "threads_are_chosen", threads_are_chosen, "as many threads as async_teardown_threads said, within bounds, from the next start on" },
	{ "told_under_filter", told_under_filter, "RAM told after start under a filter: one thread, and released early" },
	{ "unshare_refused", unshare_refused, "a filter refuses to say whether others use the memory: released all the same" },
	{ "hung_reader", hung_reader, "a userfaultfd's reader that never reads: gone after a minute" },
	{ "unsplittable", unsplittable, "what may not be split, or is sealed, beside a device and the RAM: it is free before the RAM" },
	{ "legacy_layout", legacy_layout, "the same in the legacy layout of addresses" },
	{ "ranges", ranges, "as many ranges as there may be, and one over gaps and all that is in it: these stay, the rest goes first" },
	{ "ram_kinds", ram_kinds, "all kinds of RAM ranges and of memory" },
	{ "killed_in_ram", killed_in_ram, "killed while it changes the ranges" },
	{ "stopped_in_release", stopped_in_release, "stopped and continued while it releases" },
	{ "lasts_to_the_end", lasts_to_the_end, "the helper's to its end: a veth's namespace, the executable; a userfaultfd's handler gets ESRCH then" },
	{ "stack_is_enough", stack_is_enough, "half of its stack is never touched" },
	{ NULL, NULL, NULL }
};
