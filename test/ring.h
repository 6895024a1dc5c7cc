/*
 * ring.h - an io_uring that polls a descriptor, for whoever needs something that is
 * held by a mapping
 */
#ifndef RING_H
#define RING_H

#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RING_SQPOLL = 1 << 1, RING_NO_MMAP = 1 << 14 };

#ifdef SYS_io_uring_setup
/* The kernel's; linux/io_uring.h may be older, or missing. */
struct ring_params {
	unsigned sq_entries, cq_entries, flags, unused[7];
	struct {
		unsigned head, tail, mask, entries, flags, dropped, array, unused;
		unsigned long long user_memory;
	} sq;
	struct { unsigned unused[8]; unsigned long long user_memory; } cq;
};
struct ring_request {
	unsigned char opcode, flags;
	unsigned short prio;
	int fd;
	unsigned long long unused[2];
	unsigned length, events;
	unsigned long long data, unused2[3];
};

static int ring_open(struct ring_params *p)
{
	return (int)syscall(SYS_io_uring_setup, 1, p);
}

/* Has the kernel wait for fd to be readable.  Leaves the ring open and mapped. */
static int ring_poll_with(unsigned flags, int fd)
{
	struct ring_params p;
	struct ring_request *request;
	char *sq = NULL;
	int ring;

	memset(&p, 0, sizeof(p));
	p.flags = flags;
	if (flags & RING_NO_MMAP) {	/* rings and requests are in the process's own pages */
		sq = mmap(NULL, 2 << 16, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		p.cq.user_memory = (unsigned long)sq;
		p.sq.user_memory = (unsigned long)sq + (1 << 16);
	}
	ring = ring_open(&p);
	if (ring < 0)
		return -1;
	request = (void *)(sq + (1 << 16));
	if (!sq) {
		sq = mmap(NULL, p.sq.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
			MAP_SHARED, ring, 0);
		request = mmap(NULL, p.sq_entries * sizeof(*request), PROT_READ | PROT_WRITE,
			MAP_SHARED, ring, 0x10000000);
	}
	if (sq == MAP_FAILED || (void *)request == MAP_FAILED)
		return -1;
	memset(request, 0, sizeof(*request));
	request->opcode = 6;	/* IORING_OP_POLL_ADD */
	request->fd = fd;
	request->events = 1 | 1 << 16;	/* POLLIN, in either byte order */
	*(unsigned *)(void *)(sq + p.sq.array) = 0;
	__atomic_store_n((unsigned *)(void *)(sq + p.sq.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 0, flags & RING_SQPOLL ? 2 /* wake it up */ : 0, NULL, 0) != 1)
		return -1;
	while (!__atomic_load_n((unsigned *)(void *)(sq + p.sq.head), __ATOMIC_ACQUIRE))
		sched_yield();
	return 0;
}

static __attribute__((unused)) int ring_poll(int fd)
{
	return ring_poll_with(0, fd);
}
#else
struct ring_params { int unused; };
static int ring_open(struct ring_params *p) { (void)p; return -1; }
static int ring_poll_with(unsigned flags, int fd) { (void)flags; (void)fd; return -1; }
static __attribute__((unused)) int ring_poll(int fd) { return ring_poll_with(0, fd); }
#endif

#endif
