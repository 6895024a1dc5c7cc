/*
 * kvm - a real guest: two vCPUs touch all of their memory for ever, and are
 * killed in KVM_RUN
 *
 * Prints "ok - ..." or "not ok - ..."; "# SKIP why" where there is no KVM.
 */
#define _GNU_SOURCE
#if defined(__x86_64__) && __has_include(<linux/kvm.h>)
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ASYNC_TEARDOWN_IMPLEMENTATION
#include "../async_teardown.h"

enum { VCPUS = 2, CODE = 0x1000, GUEST_MIB = 256, DEADLINE = 20 };

/*
 * 16-bit code; ds covers all memory, in "unreal mode": flat, 4 GiB.
 *	again:	mov edi, 0x100000
 *	next:	inc dword [edi]
 *		add edi, 4096
 *		cmp edi, GUEST_MIB << 20
 *		jb next
 *		out 0x10, al		a round is done
 *		jmp again
 */
static const unsigned char code[] = {
	0x66, 0xbf, 0x00, 0x00, 0x10, 0x00,
	0x66, 0x67, 0xff, 0x07,
	0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,
	0x66, 0x81, 0xff, 0x00, 0x00, 0x00, GUEST_MIB >> 4,
	0x72, 0xec,
	0xe6, 0x10,
	0xeb, 0xe2,
};

static struct { volatile int rounds, helper; } *sh;
static int vm;
static pid_t vmm_pid;

static void die(const char *what)
{
	printf("# %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *vcpu(void *arg)
{
	int kvm_fd = ((int *)arg)[0], id = ((int *)arg)[1];
	int fd = ioctl(vm, KVM_CREATE_VCPU, id);
	int size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };

	if (fd < 0 || size < 0)
		die("KVM_CREATE_VCPU");
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (run == MAP_FAILED || ioctl(fd, KVM_GET_SREGS, &sregs))
		die("kvm_run");
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = sregs.ds.selector = 0;
	sregs.ds.limit = 0xffffffff;
	sregs.ds.g = 1;
	if (ioctl(fd, KVM_SET_SREGS, &sregs) || ioctl(fd, KVM_SET_REGS, &regs))
		die("KVM_SET_REGS");
	for (;;) {
		if (ioctl(fd, KVM_RUN, 0) && errno != EINTR)
			die("KVM_RUN");
		if (run->exit_reason == KVM_EXIT_IO)
			__atomic_add_fetch(&sh->rounds, 1, __ATOMIC_SEQ_CST);
		else if (run->exit_reason != KVM_EXIT_INTR) {
			errno = 0;
			printf("# exit reason %d\n", (int)run->exit_reason);
			exit(1);
		}
	}
}

static void vmm(int kvm_fd)
{
	static int args[VCPUS][2];
	struct kvm_userspace_memory_region region = { .memory_size = GUEST_MIB << 20 };
	pthread_t t;
	char *mem;
	int i;

	vm = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (vm < 0)
		die("KVM_CREATE_VM");
	mem = mmap(NULL, GUEST_MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	memcpy(mem + CODE, code, sizeof(code));
	region.userspace_addr = (unsigned long)mem;
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("KVM_SET_USER_MEMORY_REGION");
	sh->helper = async_teardown_start();
	if (sh->helper < 0)
		exit(1);
	for (i = 0; i < VCPUS; i++) {
		args[i][0] = kvm_fd;
		args[i][1] = i;
		if (pthread_create(&t, NULL, vcpu, args[i]))
			die("pthread_create");
	}
	pause();
}

static long field(int pid, const char *key)
{
	char path[64], line[128];
	long n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (!(f = fopen(path, "r")))
		return -1;
	while (n < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			n = key[0] == 'S' ? line[strlen(key) + 2] : atol(line + strlen(key) + 1);
	fclose(f);
	return n;
}

/* KVM has a directory PID-FD for each guest, where debugfs is mounted. */
static int guest_exists(int pid)
{
	char pattern[64];
	glob_t g;
	int found;

	snprintf(pattern, sizeof(pattern), "/sys/kernel/debug/kvm/%d-*", pid);
	found = glob(pattern, 0, NULL, &g) == 0;
	globfree(&g);
	return found;
}

#define UNTIL(c) __extension__ ({ \
	int n_ = DEADLINE * 1000; \
	while (!(c) && n_-- > 0) \
		usleep(1000); \
	n_ > 0; })

static const char *judge(int kvm_fd)
{
	pid_t pid, helper;
	int st;

	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED || (vmm_pid = pid = fork()) < 0)
		return "out of memory";
	if (!pid)
		vmm(kvm_fd);
	close(kvm_fd);
	if (!UNTIL(sh->rounds >= 4))
		return "the guest did not run";
	helper = sh->helper;
	kill(helper, SIGSTOP);
	if (!UNTIL(field(helper, "State") == 'T'))
		return "the helper did not stop";
	kill(pid, SIGKILL);
	if (!UNTIL(waitpid(pid, &st, WNOHANG) == pid))
		return "the VMM was not reaped while its helper was stopped";
	if (field(helper, "RssAnon") < (GUEST_MIB - 2) * 1024L)
		return "the helper has not got the guest's memory";
	if (access("/sys/kernel/debug/kvm", X_OK) == 0 && !guest_exists(pid))
		return "the VMM's exit did KVM's teardown";
	kill(helper, SIGCONT);
	if (!UNTIL(waitpid(helper, &st, WNOHANG | __WALL) == helper))
		return "the helper stayed";
	if (!WIFEXITED(st) || WEXITSTATUS(st))
		return "the helper did not exit as it should";
	if (guest_exists(pid))
		return "KVM still has the guest";
	return NULL;
}

int main(void)
{
	static const char name[] = "KVM: a running guest is killed: reaped while the stopped helper has its memory, nothing left";
	int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const char *r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (kvm_fd < 0 || ioctl(kvm_fd, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		printf("ok - %s # SKIP no /dev/kvm: %s\n", name, strerror(errno));
		return 0;
	}
	r = judge(kvm_fd);
	if (r && sh != MAP_FAILED) {	/* leave nothing behind */
		if (vmm_pid > 0)
			kill(vmm_pid, SIGKILL);
		if (sh->helper > 0)
			kill(sh->helper, SIGKILL);
		while (waitpid(-1, NULL, __WALL) > 0)
			;
	}
	printf(r ? "not ok - %s\n# %s\n" : "ok - %s\n", name, r);
	return !!r;
}
#else
#include <stdio.h>
int main(void)
{
	puts("ok - KVM: a running guest is killed # SKIP has a guest only for x86-64 with linux/kvm.h");
	return 0;
}
#endif
