/*
 * measure.h - what demo.c and bench.c share: a clock, how much memory is free,
 * and a resource that a process holds by something that it has mapped
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* --- how much memory there is -------------------------------------------- */

/* -1 where it is not known. */
static long meminfo_mib(const char *key)
{
	char line[128], format[64];
	long kib = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	snprintf(format, sizeof(format), "%s: %%ld", key);
	while (f && fgets(line, sizeof(line), f) && sscanf(line, format, &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib < 0 ? -1 : kib / 1024;
}

static double number_in(const char *dir, const char *file)
{
	char path[1024];
	double n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	f = fopen(path, "r");
	if (f) {
		if (fscanf(f, "%lf", &n) != 1)	/* such as "max" */
			n = -1;
		fclose(f);
	}
	return n;
}

/* The least room in a control group and those above it; they kill as well. */
static double cgroup_room(const char *root, const char *path, const char *limit, const char *used)
{
	char dir[768];
	double max, room = 1e18;
	char *end;

	snprintf(dir, sizeof(dir), "%s%s", root, path);
	for (;;) {
		max = number_in(dir, limit);
		if (max >= 0 && max - number_in(dir, used) < room)
			room = max - number_in(dir, used);
		end = strrchr(dir, '/');
		if (!end || strlen(dir) <= strlen(root))
			return room;
		*end = 0;
	}
}

/* -1 where it is not known. */
static long free_mib(void)
{
	static const char *const v2[] = { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" };
	double room = 1e18, r;
	char line[512], *controllers, *path;
	FILE *f = fopen("/proc/self/cgroup", "r");
	long mib = meminfo_mib("MemAvailable");
	size_t i;

	while (f && fgets(line, sizeof(line), f)) {	/* ID:CONTROLLERS:PATH */
		line[strcspn(line, "\n")] = 0;
		controllers = strchr(line, ':');
		path = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!path)
			continue;
		*path++ = 0;
		if (strstr(controllers, "memory")) {
			r = cgroup_room("/sys/fs/cgroup/memory", path,
				"memory.limit_in_bytes", "memory.usage_in_bytes");
			room = r < room ? r : room;
		}
		for (i = 0; !controllers[1] && i < 2; i++) {
			r = cgroup_room(v2[i], path, "memory.max", "memory.current");
			room = r < room ? r : room;
		}
	}
	if (f)
		fclose(f);
	if (mib >= 0 && room / 1048576 < (double)mib)
		mib = room > 0 ? (long)(room / 1048576) : 0;
	return mib;
}

/* --- resources that a process holds by a mapping ----------------------------- */

/*
 * What a device, a port or a lock is to the next VM:
 *   LOCK    a lock on a file that is mapped and no longer open
 *   SOCKET  a socket that an io_uring polls, whose rings are mapped; it is free when
 *           its other end sees the end of file.  The kernel closes the files of an
 *           io_uring's requests one to two timer ticks late (delayed_fput), 4 to 8 ms
 *           at 250 Hz, however the process ends.
 * And
 *   PIPE    the writing end of a pipe, which the process can have its helper keep; its
 *           reader sees the end of file when the helper closes it
 */
enum kind { LOCK, SOCKET, PIPE };
struct resource {
	enum kind kind;
	int here, there;	/* descriptors of the supervisor and the process */
	pthread_t watcher;
	double free_ms;		/* when it was free */
	const struct resource *lock;	/* that has to be free by then; or NULL */
	int too_early;		/* but was not */
};

/* -1 if that cannot be had. */
static int resource_make(struct resource *r, enum kind kind)
{
	char path[] = "/tmp/async-teardown.XXXXXX";
	struct ring_params p = { 0 };
	int fds[2], ring;

	memset(r, 0, sizeof(*r));
	r->kind = kind;
	if (kind == SOCKET) {
		ring = ring_open(&p);
		if (ring < 0 || close(ring) || socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
			return -1;
	} else if (kind == PIPE) {
		if (pipe(fds))
			return -1;
	} else {
		fds[0] = mkstemp(path);
		fds[1] = open(path, O_RDWR);	/* an open file of its own, with its own lock */
		unlink(path);
	}
	r->here = fds[0];
	r->there = fds[1];
	return r->here < 0 || r->there < 0 ? -1 : 0;
}

/* In the process, and it keeps it to its end. */
static int resource_hold(const struct resource *r)
{
	close(r->here);
	if (r->kind == PIPE)
		return 0;
	if (r->kind == SOCKET)
		return ring_poll(r->there);
	if (flock(r->there, LOCK_EX) ||
	    mmap(NULL, 1, PROT_READ, MAP_SHARED, r->there, 0) == MAP_FAILED)
		return -1;
	return close(r->there);
}

static void *resource_watcher(void *arg)
{
	struct resource *r = arg;
	char c;

	while ((r->kind == LOCK ? flock(r->here, LOCK_EX) : (int)read(r->here, &c, 1)) < 0)
		;
	r->free_ms = now_ms();
	r->too_early = r->lock && flock(r->lock->here, LOCK_EX | LOCK_NB) != 0;
	return NULL;
}

/* In the supervisor, when the process holds it: a thread sleeps until it is free. */
static int resource_watch(struct resource *r)
{
	close(r->there);
	return pthread_create(&r->watcher, NULL, resource_watcher, r);
}

static double resource_wait(struct resource *r)
{
	pthread_join(r->watcher, NULL);
	close(r->here);
	return r->free_ms;
}
