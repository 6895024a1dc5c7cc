/*
 * carrier - a VMM that gives both signs, and keeps what it opens after async_teardown_start
 *
 *	carrier [FD...] 3>FIRST 4>LAST
 *
 * The supervisor gives it the writing ends of two pipes, as 3 and 4; see supervisor.c.
 * Descriptors of later, such as those of hot-plugged memory, go into a socket that is kept and
 * never read: what is in flight there is open.  278 messages of one descriptor fit into it here,
 * and one message may have 253 (unix(7)).  They count against the uid's RLIMIT_NOFILE, over all
 * its VMs.  One thread closes all that is in a socket.
 */
#define _GNU_SOURCE
#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ASYNC_TEARDOWN_THREADS 2
#include "async_teardown.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static int carrier = -1;		/* what is sent here stays open */

/* As async_teardown_start.  first and last are the writing ends of two pipes. */
static int start_helper(int first, int last)
{
	int pair[2], kept[3], ret;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -errno;
	kept[0] = first;
	kept[1] = pair[1];
	kept[2] = last;
	ret = async_teardown_keep(kept, 3);	/* one call names all: it replaces the one before */
	if (!ret)
		ret = async_teardown_start();
	close(pair[1]);			/* the helper has it */
	if (ret < 0) {
		close(pair[0]);
		return ret;
	}
	carrier = pair[0];
	return ret;
}

/* Returns 0, or -errno.  The caller may close fd then. */
static int keep_later(int fd)
{
	union { struct cmsghdr header; char bytes[CMSG_SPACE(sizeof(int))]; } control;
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m;

	memset(&control, 0, sizeof(control));
	memset(&m, 0, sizeof(m));
	m.msg_iov = &iov;
	m.msg_iovlen = 1;
	m.msg_control = &control;
	m.msg_controllen = sizeof(control);
	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
	return sendmsg(carrier, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

int main(int argc, char **argv)
{
	const size_t size = 64 << 20;
	void *ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int helper, i, ret;

	if (ram == MAP_FAILED || fcntl(3, F_SETFD, FD_CLOEXEC) || fcntl(4, F_SETFD, FD_CLOEXEC)) {
		perror("carrier: the RAM, or 3 and 4");	/* what it executes must not hold the pipes */
		return 1;
	}
	memset(ram, 0x5a, size);
	if ((ret = async_teardown_ram(ram, size)))
		fprintf(stderr, "carrier: RAM: %s\n", strerror(-ret));
	helper = start_helper(3, 4);
	if (helper < 0)			/* the pipes close late, after everything; keep them open */
		fprintf(stderr, "carrier: no asynchronous teardown: %s\n", strerror(-helper));

	for (i = 1; i < argc && helper > 0; i++) {	/* what came later */
		if ((ret = keep_later(atoi(argv[i]))))
			fprintf(stderr, "carrier: %s: %s\n", argv[i], strerror(-ret));
		close(atoi(argv[i]));
	}
	printf("vmm=%d helper=%d\n", (int)getpid(), helper);
	fflush(stdout);
	getchar();			/* the guest runs until a line, or the end, of stdin */
	_exit(0);			/* no destructor, no atexit: they may free the RAM */
}
