/*
 * kernel.c - what the kernel goes on doing for a dead VMM, and until when: native AIO,
 * io_uring, a KVM guest that runs
 *
 * Mapped devices that have to be free before the RAM are in release.c, guest_memfd in keep.c,
 * I/O ports in sandbox.c, FUSE in failing.c.
 *
 * A new case: a VMM that has something under way, freeze(helper), by_kill(), and a look at
 * what goes on; plus its line in the table below.
 */
#include <linux/aio_abi.h>
#include "ring.h"

enum { PLAIN, AIO, URING };
static int pipes[3][2];

static int is_read(int i)
{
	struct pollfd p = { pipes[i][1], POLLOUT, 0 };

	return poll(&p, 1, 0) >= 0 && !(p.revents & POLLERR);
}

/* Of each pipe the VMM has the only reading end; in sh->second, which it could
 * give to a native AIO request that stays in flight, and to an io_uring. */
static void start_with_requests(void)
{
	static struct iocb cb, *cbs[] = { &cb };
	static unsigned params[30];	/* a struct io_uring_params */
	aio_context_t context = 0;
	int i, ring;

	for (i = 0; i < 3; i++)
		close(pipes[i][1]);
	cb.aio_fildes = (unsigned)pipes[AIO][0];
	cb.aio_lio_opcode = IOCB_CMD_POLL;
	cb.aio_buf = POLLIN;
	if (!syscall(SYS_io_setup, 1, &context) && syscall(SYS_io_submit, context, 1, cbs) == 1)
		sh->second |= 1 << AIO;
	ring = (int)syscall(SYS_io_uring_setup, 1, params);
	if (ring >= 0 && mmap(NULL, 4096, PROT_READ, MAP_SHARED, ring, 0) != MAP_FAILED &&
	    !syscall(SYS_io_uring_register, ring, 2 /* files */, &pipes[URING][0], 1))
		sh->second |= 1 << URING;
	start();
}

static const char *requests(void)
{
	pid_t helper;
	int i;

	for (i = 0; i < 3; i++)
		CHECK(!pipe(pipes[i]));
	TRY(spawn(start_with_requests));
	helper = sh->helper;
	for (i = 0; i < 3; i++)
		close(pipes[i][0]);
	CHECK(freeze(helper));
	CHECK(by_kill() && reap(vmm, NULL));
	CHECK(!is_read(PLAIN));
	for (i = AIO; i <= URING; i++)
		CHECK(is_read(i) == !!(sh->second & 1 << i));
	CHECK(!signal_one(helper, SIGCONT) && gone(helper));
	CHECK(UNTIL(deadline, !is_read(AIO) && !is_read(URING)));
	if (sh->second != (1 << AIO | 1 << URING))
		SKIP(NO_URING);
	return NULL;
}

#ifdef __x86_64__
#include <linux/kvm.h>

enum { GUEST_MIB = 16 };
static int kvm_fd, vm_fd, guest_ram_told, guest_seen;

/* 16-bit code in "unreal mode", ds being flat and 4 GiB: touches all memory, and
 * again, for ever. */
static const unsigned char guest_code[] = {
	0x66, 0xbf, 0x00, 0x00, 0x10, 0x00,			/* again: mov edi, 0x100000 */
	0x66, 0x67, 0xff, 0x07,					/* next: inc dword [edi] */
	0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,		/* add edi, 4096 */
	0x66, 0x81, 0xff, 0x00, 0x00, 0x00, GUEST_MIB >> 4,	/* cmp edi, end of memory */
	0x72, 0xec,						/* jb next */
	0xe6, 0x10,						/* out 0x10, al: a round is done */
	0xeb, 0xe2,						/* jmp again */
};

static void *vcpu(void *id)
{
	int fd = ioctl(vm_fd, KVM_CREATE_VCPU, (uintptr_t)id);
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };

	MUST(fd >= 0 && size > 0);
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	MUST(run != MAP_FAILED && !ioctl(fd, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = sregs.ds.base = sregs.ds.selector = 0;
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	MUST(!ioctl(fd, KVM_SET_SREGS, &sregs) && !ioctl(fd, KVM_SET_REGS, &regs));
	for (;;) {
		MUST(!ioctl(fd, KVM_RUN, 0) || errno == EINTR);
		MUST(run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_INTR);
		__atomic_add_fetch(&sh->counter, run->exit_reason == KVM_EXIT_IO, __ATOMIC_SEQ_CST);
	}
}

static void run_guest(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_MIB << 20 };
	pthread_t t;
	char *mem;

	MUST_INT((vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0)), >=, 0);
	mem = mmap(NULL, GUEST_MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(mem != MAP_FAILED);
	memcpy(mem + 0x1000, guest_code, sizeof(guest_code));
	region.userspace_addr = (uintptr_t)mem;
	ioctl(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	MUST(!ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region));
	if (guest_ram_told)
		MUST_INT(async_teardown_ram(mem, GUEST_MIB << 20), ==, 0);
	start();
	MUST(!pthread_create(&t, NULL, vcpu, NULL) && !pthread_create(&t, NULL, vcpu, (void *)1));
	MUST(UNTIL(deadline, sh->counter >= 4));
}

static int by_kill_but_the_guest(void)
{
	return by_kill() && UNTIL(deadline, state(vmm) == 'Z') && (!guest_seen || guest_exists());
}

static const char *kvm(void)
{
	kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm_fd < 0)
		return cannot_open("/dev/kvm");
	guest_seen = guests_are_seen();
	for (guest_ram_told = 0; guest_ram_told < 2; guest_ram_told++) {
		TRY(spawn(run_guest));
		TRY(ended_by(by_kill_but_the_guest, SIGKILL));
		CHECK(!guest_exists());
	}
	return NULL;
}

#else
static const char *kvm(void)
{
	SKIP("only for x86-64");
}
#endif

/* These rings' requests end with the process's last thread, mapped or not. */
static unsigned ring_flags;
static int ring_peer[2];

static void start_with_ring(void)
{
	close(ring_peer[0]);
	sh->second = ring_poll_with(ring_flags, ring_peer[1]);
	start();
}

static const char *rings_that_go(void)
{
	const unsigned flags[] = { RING_SQPOLL, RING_NO_MMAP, 0 };
	int i, none = 0;

	for (i = 0; i < 3; i++) {
		ring_flags = flags[i];
		CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ring_peer));
		TRY(spawn(start_with_ring));
		close(ring_peer[1]);
		CHECK(freeze(sh->helper));
		CHECK(by_kill() && reap(vmm, NULL));
		if (sh->second)
			none++;
		else if (ring_flags)
			CHECK(UNTIL(deadline, has_ended(ring_peer[0])) && state(sh->helper) == 'T');
		else {		/* and the usual ones stay */
			usleep(100000);
			CHECK(!has_ended(ring_peer[0]));
		}
		CHECK(!signal_one(sh->helper, SIGCONT));
		CHECK(gone(sh->helper) && UNTIL(deadline, has_ended(ring_peer[0])));
		close(ring_peer[0]);
	}
	if (none)
		SKIP(NO_URING);
	return NULL;
}

static const struct test kernel_tests[] = {
	{ "requests", requests, "AIO in flight and an io_uring's files last until the helper is gone, other files do not" },
	{ "kvm", kvm, "a guest with two vCPUs is killed in KVM_RUN; nothing of it is left" },
	{ "rings_that_go", rings_that_go, "SQPOLL and NO_MMAP: an io_uring's requests end with the VMM, not with the helper" },
	{ NULL, NULL, NULL }
};
