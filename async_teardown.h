/*
 * async_teardown.h - v1.3.0 - MIT OR Unlicense - start the next VM before the last one's memory is freed
 *
 * When a process dies, the kernel frees its memory before its parent's wait returns, and lets go of
 * what it had mapped (devices, KVM's guest, io_uring) only after that.  For a virtual machine
 * monitor (VMM) with a huge guest this takes seconds to minutes, in which the VM cannot be
 * restarted.  Here a helper process does that work, and the VMM is reaped at once.
 *
 *     #define ASYNC_TEARDOWN_IMPLEMENTATION     // in one C or C++ file
 *     #define ASYNC_TEARDOWN_THREADS 4          // to free the RAM; default 1
 *     #include "async_teardown.h"
 *
 *     async_teardown_ram(ram, ram_size);        // where the guest's RAM is
 *     int helper = async_teardown_start();
 *     if (helper < 0)                           // not fatal: the VM dies as slowly as before
 *         fprintf(stderr, "no asynchronous teardown: %s\n", strerror(-helper));
 *
 * CONTENTS
 *
 *     What can go wrong . When to call start . How it works . What is free when . Side effects .
 *     Security . Policies . System calls . Kernels . Compiling . The functions, with their errors
 *     The code: what it needs of the kernel, the static object, what the VMM tells, the VMM's side,
 *     the helper in the order of its life, system calls by architecture . Versions . Licence
 *
 * WHAT CAN GO WRONG
 *
 *   - execve gives the helper no notice.  The helper keeps the old address space until the process
 *     exits.  Call async_teardown_stop() before execve, also if another thread is still in start;
 *     and before dlclose of the library that this file is compiled into.
 *   - A VMM that unmaps or frees its RAM on the way out does so before wait returns, and gains
 *     nothing.  End with _exit(), or leave the RAM alone: mind atexit, destructors, Rust's Drop.
 *   - Memory that only a descriptor holds (a guest_memfd, an unmapped memfd) is freed in the VMM's
 *     own exit, before wait returns.  Name the descriptor: async_teardown_keep().
 *   - A range of RAM that has been unmapped still counts.  What is mapped there later, such as a
 *     device, is kept as if it was RAM, and the first sign comes before it is free.  Forget a range
 *     (size 0) before you unmap it.
 *   - A mapping that nobody has told of is unmapped with the devices.  If it is large, they are
 *     free only after its memory.  Tell of all large mappings.
 *   - Without a helper (start failed, it was stopped, somebody killed it) the kept descriptors
 *     close after the memory is free: both signs are late, and true.  A lock that only a mapping
 *     holds may be free a moment later (0.5 ms; some ms on a busy machine): try again.
 *   - Native AIO (io_submit) and slow io_uring writes continue after the VMM's death.  A write can
 *     reach the disk after wait has returned and after the first sign (see WHAT IS FREE WHEN).
 *     With native AIO, wait for the helper's end before another VM opens the image.
 *   - Any other process that still runs on this address space crashes (SIGSEGV) when the helper
 *     unmaps it: a vfork or posix_spawn child that has not called execve yet, another CLONE_VM
 *     process, a second copy's helper.  A helper of one thread sees such a process, waits a second
 *     for it, and then releases nothing early.  A helper of several threads cannot see it; nor can
 *     one where a filter refuses unshare, as in containers.
 *   - Do not keep a descriptor whose close can block: a socket with SO_LINGER, a file on FUSE or NFS.
 *     It holds up one thread, or all of them if given first, and even SIGKILL may not end that.  Nor
 *     keep a vhost descriptor: on Linux 6.4 to 6.9 its worker, a thread of the VMM, ends only when
 *     the descriptor closes, so VMM and helper wait for each other [s].
 *   - A VFIO device closes, and is reset, with its last descriptor or mapped region.  If one is
 *     mapped, the helper closes the device: after wait, DMA still reaches memory until the first sign.
 *     VFIO groups on an iommufd can even be opened again before that sign.  Start the next VM after the
 *     first sign.  README.md says what to keep, and who unpins the RAM when.
 *   - If the program's file is on a server that does not answer (FUSE, NFS), and a page of the helper's
 *     code is not in memory, the helper hangs in state D; SIGKILL ends it.  So start locks that code,
 *     unless RLIMIT_MEMLOCK is used up, there was a seccomp filter, or a thread held mmap_lock for a
 *     second; if the VMM itself locks nothing, VmLck in /proc/HELPER/status is 0 then.  The lock does
 *     not help where anybody opens the file on a FUSE without FOPEN_KEEP_CACHE: the page is dropped.
 *   - A SIGSTOP to the process group may stop a process that start has just made.  If SIGKILL then
 *     ends the VMM alone, that process keeps the memory and all of the VMM's descriptors, under the
 *     VMM's own name, until it gets SIGCONT or SIGKILL.
 *   - In a container, the helper does not make the container itself stop faster: when its PID 1
 *     exits, the kernel kills all other processes there and waits for them.  PID 1 cannot have a
 *     helper (-EOPNOTSUPP).
 *   - SIGKILL ends the helper, and the teardown is then synchronous again.  Killing a whole control
 *     group does that.  So does the OOM killer: it kills all processes that share the memory.
 *   - An attacker who controls the VMM controls the helper's memory too: see SECURITY.
 *
 * WHEN TO CALL START
 *
 *   - After daemonizing: a child of fork has no helper.
 *   - In the control group and the namespaces of the VM, after setcon and the like: the helper
 *     keeps those of that moment, also SELinux context, AppArmor profile and Landlock domain.
 *     While it lives, the kernel refuses setcon, and setns to a time namespace.
 *   - Before the VMM's own seccomp filter.  A filter that is there already has to allow the calls
 *     under SYSTEM CALLS.  Call ram or keep before start then: otherwise the helper does not try the
 *     calls of the release, and has one thread only.
 *   - Before chroot and setuid.  But call it in the jail if the VMM has no capabilities and its
 *     jail has a /proc: otherwise /proc/HELPER/root leads out of the jail.
 *
 *     The VMM may have threads by then, and the calling one may end.  The helper keeps the caller's
 *     scheduling policy and CPU affinity: do not call start from a pinned or real-time thread, nor
 *     with less than 4 KiB of stack.
 *
 * HOW IT WORKS
 *
 *     start clones the helper: a process of its own that shares the VMM's memory (CLONE_VM without
 *     CLONE_THREAD).  It sleeps on a pidfd until every thread of the VMM is gone, however the VMM
 *     ended.  The helper is then the last user of the memory.
 *
 *     VMM     ====== guest runs ======x reaped
 *     helper         ..... sleeps ....|=| first sign: devices, sockets, KVM, locks are free
 *       its threads  ..... sleep ......|== RAM is freed ==x last sign: all is back
 *
 *     The helper gives the parent up to 20 ms to reap the VMM.  Then it unmaps everything but the RAM
 *     and the program or library that it runs in, and closes the first kept descriptor, if there are
 *     several.  Then its threads share one list of work: the descriptors between the first and the last,
 *     in the order given, then the RAM (MADV_DONTNEED).  The helper's exit closes the last descriptor.
 *
 *     Without async_teardown_ram and async_teardown_keep there is one step: the helper exits, and
 *     the kernel frees everything as in the VMM's own exit, devices last.
 *
 *     The helper is a child of the VMM with exit signal 0: only wait calls with __WCLONE or __WALL
 *     see it.  Its name is cleanup/PID, with the VMM's PID as the VMM sees it: pgrep -x
 *     cleanup/1234 finds it.  It stays in the VMM's control groups: its memory and CPU time are
 *     charged there as before.
 *
 * WHAT IS FREE WHEN
 *
 *     after wait              what only descriptors hold: TAP, sockets, ports, locks, files
 *     next, with ram or keep  what is mapped and not RAM: VFIO regions, KVM's guest (unless a
 *                             guest_memfd holds it), packet rings, locks and files of mappings,
 *                             io_uring and AF_XDP rings.  What these two kinds of ring hold is
 *                             closed a moment later, as after any exit: an io_uring's registered
 *                             files, and those of its requests in flight (with NO_MMAP both are free
 *                             after wait, with SQPOLL those of the requests)
 *     the first sign          the first kept descriptor closes, if several are kept
 *     then                    the other kept descriptors and the RAM.  A guest_memfd holds its VM:
 *                             KVM's guest goes with the last of its guest_memfds.  If all are kept,
 *                             between two pipes, and the helper has a thread for each, the guest
 *                             goes before their memory is freed
 *     when the helper exits   native AIO's files, namespaces, the executable (ETXTBSY until then)
 *                             and its file system, the root directory (EBUSY until then), the
 *                             control group; a userfaultfd's handler gets ESRCH.  Without ram and
 *                             keep: all that is mapped
 *     the last sign           the last kept descriptor closes
 *
 *     To see the signs, keep the writing end of a pipe (O_CLOEXEC), given first or last.  Any
 *     process that has the reading end gets an end of file.  The first sign says: the next VM may
 *     start, if there is room for both.  The last one says: all is back.  (What an io_uring held
 *     may be a moment late for both: try again.)  If ram or keep was used, the helper's end
 *     also says that all is back: wait for it with a pidfd, or with tail --pid.  With start alone it
 *     does not: while a monitoring agent reads /proc/PID/smaps, memory and mapped locks outlive the
 *     helper by some 100 ms.
 *
 *     In these cases the helper cannot release anything early.  All kept descriptors then close in
 *     its exit, so its end is the sign:
 *       - where return addresses are also on a shadow stack (x86 SHSTK, arm64 GCS, RISC-V Zicfiss);
 *         the threads free the RAM in parallel there all the same;
 *       - where a filter refuses munmap or timer_create, or the uid's RLIMIT_SIGPENDING is used up;
 *       - where the linker does not tell where the image is (__ehdr_start is 0), or puts .bss
 *         outside of it (gold -Tbss), or the program was rewritten later (BOLT);
 *       - where another process uses the memory; see WHAT CAN GO WRONG.
 *
 *     These stay mapped until the helper exits: sealed mappings (mseal); mappings that the kernel
 *     refuses to split (vdso, perf buffers, xen privcmd) if they lie next to the RAM or a sealed
 *     one; small mappings between two sealed areas of more than 16 MiB; the rest of a hugetlb page
 *     that a range cuts; mappings in the gaps between the segments of a static PIE (with segments
 *     aligned to more than a page, as on arm64; link with -Wl,-z,max-page-size=4096).
 *
 *     These are freed by one thread, after the rest of the RAM: the pages of a shared file (memfd);
 *     hugetlb pages of 1 GiB; before Linux 5.18 all hugetlb pages and mlocked RAM.
 *
 *     If one step of the release takes an hour (another process has a userfaultfd for the memory,
 *     asked to be told of its removal, and does not read), the helper is killed.  Its exit frees
 *     everything.
 *
 * SIDE EFFECTS
 *
 *   - ps and top show the memory and the command line twice; RSS, PSS and USS all double.
 *   - start locks some 20 KiB in memory (RLIMIT_MEMLOCK).  They stay locked after stop.
 *   - After the VMM's death the helper has a new parent: the nearest subreaper, or PID 1.  It gets a
 *     SIGCHLD at the helper's end, and has to reap it.
 *   - Until then, the helper and its threads count against pids.max and RLIMIT_NPROC, the helper's
 *     timer against RLIMIT_SIGPENDING.
 *   - The helper waits until the VMM's core dump has been written.
 *   - Valgrind aborts on this clone.  Under qemu-user start returns -EINVAL.
 *   - A uprobe in the helper's functions ends it, and so does code that is injected by ptrace.
 *   - CRIU: call stop before the dump, and start after the restore.
 *
 * SECURITY
 *
 *     An attacker who controls the VMM can rewrite the helper's memory, and so run code in it.  The
 *     helper was cloned with the privileges of that moment.  So before start returns, the helper
 *
 *       - holds no descriptor but a pidfd of the VMM, a pipe for its threads, and what is kept, for
 *         which it has no calls but close and ppoll;
 *       - has no capability in effect, has no_new_privs, and dumps no core (except to a socket
 *         in core_pattern, for which no limit counts; and to a program there if the hard RLIMIT_CORE
 *         is 0 and cannot be raised);
 *       - runs under a seccomp filter (atd_filter below) that kills it for any call but ppoll,
 *         rt_sigtimedwait, getppid, munmap, close, timer_settime, exit, exit_group; timer_create
 *         with the monotonic clock; kill with signal 0; unshare(CLONE_VM), which only asks a
 *         question; and madvise to drop pages.
 *
 *     It keeps the uid, the permitted capabilities, the namespaces and control groups of the moment
 *     of start, without a call to use them by.  On x86 it also keeps ioperm and iopl, which take no
 *     call: give those up before start.
 *
 *     What is left to the attacker: to ask which PIDs exist; to drop memory that is already his; to
 *     use up, by timers, the uid's RLIMIT_SIGPENDING; to give the signs too early; to have the
 *     helper stay when the VMM is dead, keep the memory and a CPU, and go on writing to memory that
 *     the VMM shared with others.  So have the supervisor kill the helper after a timeout, and
 *     trust no memory that was shared with the VMM until the helper is gone.
 *
 *     The helper opens no new way to the VMM's memory: to trace it, or to open its /proc/PID/mem,
 *     takes the privileges that the VMM took at start.  That is why the permitted set stays.  One
 *     exception: under AppArmor, if /proc/self/status cannot be read, the permitted set shrinks to
 *     what the profile grants.  The VMM's credentials, seccomp state and dumpable flag are
 *     unchanged.
 *
 *     Where the kernel or a policy refuses one of these, there is no helper: start fails, and the
 *     teardown is synchronous.  A slow exit is better than a way in.
 *
 * POLICIES
 *
 *     SELinux    svirt_t (libvirt) may not setcap.  start works if no capability is in effect or
 *                inheritable, as in a QEMU that libvirt runs as another user; otherwise it returns
 *                -EACCES.  Where the policy refuses getcap, start needs a readable
 *                /proc/self/status; else -EACCES.  Where it refuses setrlimit or sigkill
 *                (Debian's), start still works; stop then returns -EACCES.
 *     AppArmor   start works (libvirt's template).  Without a signal rule for its own profile, stop
 *                returns -EACCES, and without pidfd the memory comes 0.5 s late.  capget shows only
 *                what the profile grants: the real sets are read from /proc/self/status (but not
 *                under a seccomp filter).
 *     Landlock   start works, and a domain may follow it.  With SCOPE_SIGNAL after start, stop
 *                returns -EPERM.
 *     systemd    With SystemCallFilter=~@privileged, start works if no capability is in effect or
 *                inheritable; otherwise it returns -EPERM.
 *     docker     The default filter refuses unshare: the helper cannot ask whether others use the
 *                memory, and releases early all the same.
 *
 * SYSTEM CALLS
 *
 *     A seccomp filter of the VMM's own, installed before start, has to allow
 *
 *     to the VMM             getpid rt_sigprocmask wait4 clone ppoll prctl kill exit
 *     to the helper          rt_sigprocmask prctl prlimit64 setsid close_range chdir pidfd_open
 *                            getppid capget ppoll kill exit_group
 *     with capabilities      openat read close capset
 *     with ram or keep       munmap madvise timer_create timer_settime unshare close fcntl
 *     with several threads   clone pipe2 exit
 *     before Linux 5.9       unshare openat getdents64 close, not close_range
 *     before Linux 5.3       rt_sigtimedwait unshare, not pidfd_open
 *     for stop               getpid rt_sigprocmask wait4 kill ppoll
 *     for keep               getpid
 *
 *     Without a filter, openat, read, close and mlock are called too, and may fail.
 *
 *     clone has the flags VM | FILES | VFORK, then VM | FILES | SIGHAND | THREAD | VFORK, then VM |
 *     FILES | CHILD_CLEARTID, and for each further thread VM | FS | FILES | SIGHAND | THREAD.
 *
 *     If the filter answers with an error, start returns it, or -EPERM (exit), or -ESRCH (getppid),
 *     or does without: close_range, pidfd_open and chdir may be refused; also capget, where
 *     /proc/self/status can be read.
 *
 *     If the filter kills for one of the VMM's own calls, the VMM dies; but not for exit, which
 *     another process tries first.  If it kills the helper for a call, start returns -EPERM.  Some
 *     calls (munmap, exit_group) can only be made when the VMM is gone: if the filter then kills just
 *     one thread of the helper, the others end a minute later.
 *
 *     A handler of SIGSYS (SECCOMP_RET_TRAP) may answer the VMM's calls, but not rt_sigprocmask or
 *     clone: start then returns -EPERM.  The helper blocks SIGSYS, so a trap kills the helper.
 *
 * KERNELS
 *
 *     2.6.30  unshare(CLONE_VM) tells whether others use the memory [s]
 *     3.5     seccomp filters; without them start returns -EINVAL [r]
 *     3.10    RHEL 7's does not clear the CLEARTID word of a killed process: if another thread has
 *             reaped a helper that was killed, stop may kill an unrelated child that has got its
 *             PID [r]
 *     4.8     an oom_score_adj written for VMM or helper holds for both [r]
 *     4.18    up to some 5.4: a child of clone inherits the area for restartable sequences.  This
 *             helper does not: see atd_launch [r]
 *     5.3     pidfd_open.  Before, or where RLIMIT_NOFILE is 0 and cannot be raised: the helper
 *             waits for its parent-death signal and polls twice a second, since a VMM that
 *             has changed its uid cannot send that signal.  So memory may come back 0.5 s late (more
 *             under load), and 0.25 s more if the parent does not reap.  The first sign may come before
 *             wait returns: wait for both.  The helper has one thread, and does notice an execve [r]
 *     5.9     close_range.  Before: /proc/self/fd; without /proc, the helper closes a million
 *             numbers one by one (some 0.1 s) [r]
 *     5.16    Before (kernel commit 0258b5fd7c71), a signal that dumps core kills all processes that
 *             share the memory, also if RLIMIT_CORE is 0, but not with PR_SET_DUMPABLE 0.  So after
 *             a SIGSEGV of the VMM the teardown may be synchronous, and a filter that kills or traps
 *             the helper kills the VMM (not on 4.4) [r]
 *     5.18    MADV_DONTNEED_LOCKED, and MADV_DONTNEED for hugetlb [s]
 *     6.18    where sessions (autogroup) or control groups share the CPUs, the busy threads of one
 *             may keep all others from running for seconds: start and stop then wait for the helper
 *             as long.  kernel.sched_autogroup_enabled=0 ends the former [r]
 *     6.18    a CPU quota stops a thread on its return from the kernel, until its quota has caught up
 *             with the time used: the RAM is free a period later than after a plain exit, the helper's
 *             end and the last sign later still (512 MiB, 5 %: 0.2 and 0.5 s, plain 0.1) [r]
 *
 *     [r]: seen on such a kernel; [s]: from its source.  Version 1.2 was run on 3.10 (RHEL 7), 4.4,
 *     4.18 (RHEL 8), 5.4, 5.10, 6.1, 6.12 and 7.3-rc7; this one on 6.1, 6.12 and 6.18.
 *
 * COMPILING
 *
 *     ASYNC_TEARDOWN_IMPLEMENTATION  in one file: the code is compiled there.
 *     ASYNC_TEARDOWN_THREADS         in that file: the most threads that a helper can have, 1 to
 *                                    1024; default 1.  Each has a static stack.
 *     ASYNC_TEARDOWN_RANGES          in that file: the most ranges of RAM, 1 to 4096; default 32.
 *                                    A range takes two pointers' size.
 *     ASYNC_TEARDOWN_STATIC          in that file: the functions are private to it.  Two files can
 *                                    both have their own; each has a helper of its own then.  Tell
 *                                    only one of them of RAM.
 *     ASYNC_TEARDOWN_API             everywhere: what stands before the functions instead of
 *                                    "extern", such as a visibility.
 *     ASYNC_TEARDOWN_VERSION         10203 would be version 1.2.3.
 *
 *     C99 or C++11 and later; gcc or clang (others are an #error); glibc or musl.  Nothing has to
 *     be defined or included before.  The code calls no function of libc and allocates nothing: it
 *     takes 8.5 KiB with -Os (10 with two threads).  0.75 KiB of it are the stack of a thread (3 KiB
 *     on s390x, mips, ppc64 and with SVE or RISC-V V).
 *
 *     Options add nothing to the helper's code that calls a function or has thread-local storage:
 *     attributes keep out sanitizers, profiling, -ftrapv, -fstrub and the like.  Two of clang's cannot
 *     be kept out, -fsanitize=type and -fmemory-profile: the helper crashes when it begins to
 *     release, and nothing is free early.  start returns -EOVERFLOW with -fsplit-stack in g++, and
 *     where the frames need too much stack (aligned to 128 bytes and more, say).
 *
 *     Run on kernels of the architecture, with and without pidfd_open: x86-64, i386, aarch64, arm (ARM and
 *     Thumb code), s390x, ppc64le, riscv64, mips64el, loongarch64; all but x86-64 in emulation.
 *     Compiled only: mips64.  On other architectures, on arm before version 6 and on big-endian
 *     arm, the implementation is an #error.  On other systems than Linux the functions exist and
 *     return -ENOSYS.
 */
#ifndef ASYNC_TEARDOWN_H
#define ASYNC_TEARDOWN_H

#define ASYNC_TEARDOWN_VERSION 10300	/* 1.3.0 */

#if defined(__GNUC__) || defined(__clang__)
#define ASYNC_TEARDOWN_IS(attribute) __attribute__((attribute))
#else
#define ASYNC_TEARDOWN_IS(attribute)
#endif
#if defined(ASYNC_TEARDOWN_API)
#elif defined(ASYNC_TEARDOWN_STATIC)
#define ASYNC_TEARDOWN_API static ASYNC_TEARDOWN_IS(__unused__)
#else
#define ASYNC_TEARDOWN_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Starts the helper.
 *
 * Returns the helper's PID (> 0) when it is completely set up, or -errno.  After an error, unless the
 * list says otherwise, it has been reaped, nothing else has changed, and the teardown is synchronous.
 *
 *     -EAGAIN      the process limit is reached (RLIMIT_NPROC, pids.max); for a moment one more is
 *                  needed than the helper has threads.  Or the calling thread's policy is
 *                  SCHED_DEADLINE
 *     -EBADF       a descriptor that is to be kept is not open
 *     -ECANCELED   somebody killed the helper before it was ready
 *     -EACCES      a security module refuses a call; see POLICIES.  If it refuses SIGKILL for a
 *                  helper that is not ready in time, that one stays, and becomes ready: the next
 *                  start returns its PID.  Until then, do not call execve
 *     -EPERM       a seccomp filter refuses a call, kills the helper for one, or has a SIGSYS
 *                  handler answer rt_sigprocmask or clone
 *     -ECHILD      another thread of the VMM, in a wait with __WALL, has reaped a process that
 *                  start has made
 *     -ETIMEDOUT   the helper was not ready within thirty seconds: it is frozen, traced, or the
 *                  server of a file (FUSE, NFS) does not answer the close of a copy of its descriptor.
 *                  It has been killed.  If it does not end within thirty seconds either, the next
 *                  call of start or stop reaps it, or says the same again.  Also when another thread
 *                  was in start or stop for thirty seconds
 *     -EOVERFLOW   an option of the compiler makes the helper's stack too small.  Nothing of the
 *                  VMM's has been overwritten; see COMPILING
 *     -EOPNOTSUPP  the caller is PID 1 of a PID namespace: the kernel lets it end only after all
 *                  other processes there
 *     -ENOSYS      not Linux; or the kernel, or a filter, lacks a call
 *     -EINVAL      the kernel has no seccomp filters; or this is qemu-user; or the process has
 *                  called unshare(CLONE_NEWPID), or setns to a PID namespace.  (Under a filter,
 *                  start then uses up a new namespace: later forks fail with ENOMEM)
 *     or another error that the kernel gives for a step, such as -ENOMEM
 *
 * In a process that has a helper, returns the PID of that one.  If it has been killed, reaps it and
 * starts another.  After fork the child has no helper and may start its own; it inherits the
 * ranges, the kept descriptors and the number of threads.
 *
 * Any thread may call this at any time, and several at once: they get the same helper.  Do not call
 * it in a SIGSYS handler, nor in a vfork child or another process that shares the VMM's memory: two
 * processes would set up two helpers on one stack.  It waits for the helper to be set up: a
 * fraction of a millisecond on an idle machine; a second more if a thread holds mmap_lock as long,
 * say in a large munmap.  The seconds above are time that start sleeps: without CPU time they
 * last longer.  Meanwhile signals other than SIGKILL, SIGSTOP and SIGSYS wait, and the parent
 * is not told of a stop.  A helper that is stopped is continued.  start prints nothing, and leaves
 * the caller's errno, signal mask, signal handlers, descriptors and heap alone.
 */
ASYNC_TEARDOWN_API int async_teardown_start(void);

/*
 * Ends the helper and reaps it.  The teardown will be synchronous.  Call it before execve.
 *
 * Returns 0, also when there is no helper; or -errno, and then the helper is still there:
 *
 *     -EPERM       the process has given up the privileges that it needs to signal the helper, or a
 *                  seccomp filter refuses a call
 *     -EACCES      a security module refuses to send SIGKILL
 *     -ETIMEDOUT   the helper has been killed, but did not end within thirty seconds: it is frozen,
 *                  traced, or in the close of a file whose server does not answer
 *     -ENOSYS      not Linux; or a filter refuses a call with ENOSYS
 *
 * An execve after -ETIMEDOUT is safe: the helper, once it can run again, dies and frees the old
 * memory.  After -EPERM or -EACCES that stays until the process exits: avoid execve, or accept it.
 *
 * In a vfork child it does nothing.  Threads, errno and so on: as for start, but the thread's timer
 * slack lengthens its sleeps.
 */
ASYNC_TEARDOWN_API int async_teardown_stop(void);

/*
 * Tells where guest RAM is: size bytes from start.  This counts for the helper that there is and
 * for later ones.  size 0 forgets the range that begins at start; another size changes it.
 *
 * When the VMM is gone, the helper unmaps everything but the ranges and its own image.  Its threads
 * then free the ranges; a file that others share keeps its content.  Tell of what is large: in
 * QEMU, RAM blocks of 16 MiB and more.  One range may span several mappings and the gaps between
 * them.  Ranges may overlap, be unaligned, or no longer be mapped; but forget one before something
 * else is mapped there.
 *
 * Returns 0, or -errno, and then nothing has changed:
 *
 *     -ENOSPC   there are ASYNC_TEARDOWN_RANGES already.  Join neighbours to one range (what else
 *               is mapped between them then stays until the end), or go on: the untold memory is
 *               freed with the devices
 *     -ENOENT   no range begins at start that could be forgotten
 *     -EINVAL   start is 0, or the end is past the top, or an address has a tag
 *     -ENOSYS   not Linux
 *
 * Makes no system call.  Any thread may call it at any time, but not two at once for the same
 * start.
 */
ASYNC_TEARDOWN_API int async_teardown_ram(void *start, unsigned long size);

/*
 * Names the descriptors that the next helper keeps open: n of them, 8 at most.  This replaces what
 * was named before; with n 0 nothing is kept.  The helper then frees the memory behind them, not
 * the VMM's exit.
 *
 * When the VMM is gone and the devices are free, the helper closes the first one, if there are
 * several: give a pipe, or something else that closes at once.  Then its threads close the others
 * but the last, each thread taking the next in the order given, and free the RAM.  The helper's exit
 * closes the last one, when all else is free.  A helper that is killed, or that releases nothing
 * early, closes all of them in its exit, after the memory and before mapped files.
 *
 * To keep a descriptor that is opened later, send it (SCM_RIGHTS, unix(7)) to a socket that is kept
 * and never read.
 *
 * Returns 0, or -errno, and then nothing has changed:
 *
 *     -EBUSY    this process has a helper that lives, or another thread is in start or stop: the
 *               helper would not keep them.  Call this before start, or stop first
 *     -EINVAL   n is out of bounds, or one is given twice
 *     -EBADF    one is negative.  (start says so of one that is not open)
 *     -ENOSYS   not Linux
 *
 * If it fails, do not start: the pipes would close with the VMM, and both signs would lie.  The
 * compiler warns if the result is ignored.  Any thread may call this, but not while another is in
 * here or in start, nor a vfork child.  start's cost grows with the highest number kept.
 */
ASYNC_TEARDOWN_API ASYNC_TEARDOWN_IS(__warn_unused_result__)
int async_teardown_keep(const int *fds, int n);

/*
 * Chooses how many threads helpers have from the next one on: n, or the nearest number from 1 to
 * ASYNC_TEARDOWN_THREADS, which is also the default.  Returns that number, or -ENOSYS (not Linux).
 * A helper gets just one without a pidfd (Linux 5.3) or a timer, and where there is a seccomp filter
 * and nothing was told before start: Threads in /proc/HELPER/status says how many.  Any thread may
 * call this at any time.
 */
ASYNC_TEARDOWN_API int async_teardown_threads(int n);

#ifdef __cplusplus
}
#endif

#endif /* ASYNC_TEARDOWN_H */

#if defined(ASYNC_TEARDOWN_IMPLEMENTATION) && !defined(ASYNC_TEARDOWN_IMPLEMENTED)
#define ASYNC_TEARDOWN_IMPLEMENTED

#include <errno.h>		/* E...: the numbers only, never the variable */

#ifdef __linux__

#include <sys/syscall.h>	/* __NR_... */

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"	/* gcc: what follows may be unknown */
#pragma GCC diagnostic ignored "-Wattributes"
#pragma GCC diagnostic ignored "-Wunknown-warning-option"	/* clang: the same */
#pragma GCC diagnostic ignored "-Wunknown-attributes"
#pragma GCC diagnostic ignored "-Wold-style-cast"
#pragma GCC diagnostic ignored "-Wpedantic"	/* gcc: to it, strub is part of a type */
#pragma GCC diagnostic ignored "-Wunsafe-buffer-usage"		/* means pointers, in C */
#pragma pack(push, 16)	/* the kernel's layouts, whatever pack or -fpack-struct says */

/*
 * The helper runs on the thread pointer of the thread that called start, and that thread may be
 * gone.  So its code calls nothing of libc or of the compiler's library, and touches no
 * thread-local storage: no errno, and nothing that compilers keep there, such as stack protector
 * canaries and the state of sanitizers and profilers.
 *
 * It has a section of its own, which the helper locks in memory; see atd_lock_memory.
 */
#if (!defined(__GNUC__) && !defined(__clang__)) || defined(__TINYC__)
#error "async_teardown.h: needs gcc or clang"
#elif defined(__clang__)
#define ATD_SPLIT 0
#pragma clang attribute push(__attribute__((__uninitialized__)), apply_to = variable(is_local))
#ifdef __aarch64__
#define ATD_BARE_MORE , __target__("no-outline-atomics")
#else
#define ATD_BARE_MORE
#endif
#define ATD_BARE __section__("atd_text"), __no_instrument_function__, \
	__no_profile_instrument_function__, __no_sanitize__("all", "coverage"), \
	__no_stack_protector__, __no_split_stack__, __xray_never_instrument__, \
	__disable_sanitizer_instrumentation__, __no_speculative_load_hardening__ ATD_BARE_MORE
#else
/* As pragmas: functions with an attribute "optimize" are not inlined into those without. */
#pragma GCC push_options
#pragma GCC optimize ("no-trapv", "no-stack-check", "inline-atomics", "tree-parallelize-loops=1")
#if __GNUC__ < 11	/* since, there is the attribute; and -fhardened warns of this */
#pragma GCC optimize ("no-stack-protector")
#endif
#pragma GCC optimize ("no-harden-control-flow-redundancy")
#if defined(__aarch64__) && __GNUC__ >= 10
#pragma GCC target ("no-outline-atomics")
#endif
#ifndef __cplusplus	/* g++ refuses no_split_stack at a definition: look for its runtime */
#define ATD_BARE_MORE , __no_split_stack__
#define ATD_SPLIT 0
#else
#define ATD_BARE_MORE
extern const char atd_split_stack[] __asm__("__splitstack_find") __attribute__((__weak__));
#define ATD_SPLIT (atd_arg(atd_split_stack) != 0)
#endif
#define ATD_BARE __section__("atd_text"), __no_instrument_function__, \
	__no_profile_instrument_function__, __no_sanitize__("all"), __no_sanitize_coverage__, \
	__no_stack_protector__, __strub__("callable"), __noclone__ ATD_BARE_MORE
#endif
#define ATD_FN static __attribute__((ATD_BARE))
#define ATD_NOINLINE static __attribute__((__noinline__, ATD_BARE))	/* smaller */

/*
 * Callers have to see a call, and so take vector registers for lost: some do not survive a system
 * call (SVE, RISC-V V).  This file may be compiled without them, and so without the clobbers below,
 * and yet be inlined into code that uses them, by a target attribute or link-time optimization.
 * noinline is not enough: gcc's -fipa-ra would see which registers the function uses.
 */
#define ATD_OPAQUE __attribute__((__noinline__, __noipa__, ATD_BARE))

/*
 * What the code needs of the kernel's interface.  Own definitions, because libc's hide behind
 * feature macros that the including file may not have set, and the kernel's headers clash with
 * libc's.  The system calls themselves, by architecture, stand at the end.
 *
 * ATD_EM is the architecture's ELF machine number, which a seccomp filter checks.
 */
#if defined(__x86_64__) && !defined(__ILP32__)
#define ATD_EM 62
#elif defined(__i386__)
#define ATD_EM 3
#elif defined(__aarch64__) && defined(__LP64__) && !defined(__AARCH64EB__)
#define ATD_EM 183
#elif defined(__arm__) && defined(__ARM_EABI__) && !defined(__ARMEB__) && \
	__ARM_ARCH >= 6 && (!defined(__thumb__) || defined(__thumb2__))
#define ATD_EM 40
#elif defined(__riscv) && __riscv_xlen == 64
#define ATD_EM 243
#elif defined(__s390x__)
#define ATD_EM 22
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
#define ATD_EM 21
#elif defined(__loongarch__) && __loongarch_grlen == 64
#define ATD_EM 258
#elif defined(__mips64) && _MIPS_SIM == 3 && __mips_isa_rev < 6	/* n64 */
#define ATD_EM 8
#else
/* libc's syscall() is no way out: it writes errno, which is in the thread-local storage of a thread
 * that may be gone.  Not here either: big-endian arm, where nobody has seen which architecture the
 * kernel tells a filter, and arm before version 6, where atomics are calls. */
#error "async_teardown.h: no system call block for this architecture; please add one"
#endif

enum {
	ATD_CLONE_VM = 0x100, ATD_CLONE_FS = 0x200, ATD_CLONE_FILES = 0x400,
	ATD_CLONE_SIGHAND = 0x800, ATD_CLONE_VFORK = 0x4000, ATD_CLONE_THREAD = 0x10000,
	ATD_CLONE_CHILD_CLEARTID = 0x200000, ATD_CLOSE_RANGE_UNSHARE = 2,
	ATD_WNOHANG = 1, ATD_WCLONE = (int)0x80000000,	/* children without an exit signal */
	ATD_AT_FDCWD = -100, ATD_F_GETFD = 1, ATD_POLLIN = 1, ATD_CLOCK_MONOTONIC = 1,
	ATD_MADV_DONTNEED = 4, ATD_MADV_DONTNEED_LOCKED = 24,
	ATD_SIGHUP = 1, ATD_SIGKILL = 9,
#ifdef __mips__
	ATD_NR_PIDFD_OPEN = 5434, ATD_NR_CLOSE_RANGE = 5436,
	ATD_SIG_BLOCK = 1, ATD_SIG_SETMASK = 3, ATD_SIGSET_BYTES = 16,
	ATD_SIGSYS = 12, ATD_SIGCONT = 25, ATD_RLIMIT_NOFILE = 5,
#else
	ATD_NR_PIDFD_OPEN = 434, ATD_NR_CLOSE_RANGE = 436,
	ATD_SIG_BLOCK = 0, ATD_SIG_SETMASK = 2, ATD_SIGSET_BYTES = 8,
	ATD_SIGSYS = 31, ATD_SIGCONT = 18, ATD_RLIMIT_NOFILE = 7,
#endif
	ATD_RLIMIT_CORE = 4, ATD_CAPABILITY_VERSION_3 = 0x20080522,
	ATD_PR_SET_PDEATHSIG = 1, ATD_PR_SET_NAME = 15, ATD_PR_GET_SECCOMP = 21,
	ATD_PR_SET_SECCOMP = 22, ATD_SECCOMP_MODE_FILTER = 2, ATD_PR_SET_TIMERSLACK = 29,
	ATD_PR_GET_TIMERSLACK = 30, ATD_PR_SET_NO_NEW_PRIVS = 38
};

struct atd_sigset { unsigned long bits[ATD_SIGSET_BYTES / sizeof(long)]; };
struct atd_timespec { long sec, nsec; };
struct atd_itimerspec { struct atd_timespec interval, value; };
struct atd_sigevent { long value; int signo, notify; char rest[56 - sizeof(long)]; };
struct atd_pollfd { int fd; short events, revents; };
struct atd_rlimit { unsigned long long cur, max; };
struct atd_cap_header { unsigned int version; int pid; };
struct atd_cap_data { unsigned int effective, permitted, inheritable; };
struct atd_dirent { unsigned long long ino, off; unsigned short reclen; char type, name[16]; };
struct atd_insn { unsigned short code; unsigned char jt, jf; unsigned int k; };
struct atd_prog { unsigned short len, pad[sizeof(void *) / 2 - 1]; const struct atd_insn *insns; };

/* Returns what the kernel does, -errno included. */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e);
/* clone(2); the child calls entry on the new stack. */
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid);

/* A pointer as a system call argument. */
ATD_FN long atd_arg(const volatile void *p)
{
	return (long)p;
}

/* A call of one argument, or none. */
ATD_NOINLINE long atd_call(long nr, long a)
{
	return atd_syscall(nr, a, 0, 0, 0, 0);
}

/* The raw call, which also blocks the signals that libc keeps for itself. */
ATD_NOINLINE long atd_sigmask(long how, const struct atd_sigset *set, long old)
{
	return atd_syscall(__NR_rt_sigprocmask, how, atd_arg(set), old, ATD_SIGSET_BYTES, 0);
}

/* All signals, or none. */
ATD_FN void atd_fill(struct atd_sigset *set, unsigned long bits)
{
	unsigned long i;

	for (i = 0; i < sizeof(set->bits) / sizeof(long); i++)
		set->bits[i] = bits;
}

ATD_FN int atd_blocked(const struct atd_sigset *set, int sig)
{
	return set->bits[0] >> (sig - 1) & 1;
}

ATD_NOINLINE long atd_prctl(long option, long arg, long arg2)
{
	return atd_syscall(__NR_prctl, option, arg, arg2, 0, 0);
}

ATD_NOINLINE long atd_kill(long pid, long sig)
{
	return atd_syscall(__NR_kill, pid, sig, 0, 0, 0);
}

ATD_NOINLINE long atd_madvise(unsigned long from, unsigned long size, long advice)
{
	return atd_syscall(__NR_madvise, (long)from, (long)size, advice, 0, 0);
}

ATD_NOINLINE long atd_munmap(unsigned long from, unsigned long size)
{
	return atd_syscall(__NR_munmap, (long)from, (long)size, 0, 0, 0);
}

/*
 * 0 if no other task uses this memory, -EINVAL if one does, or in a process of several threads.
 * unshare(CLONE_VM) changes nothing, but only tells that, since Linux 2.6.30 (check_unshare_flags).
 * It needs no permission and no PID.
 */
ATD_FN long atd_unshare_vm(void)
{
	return atd_call(__NR_unshare, ATD_CLONE_VM);
}

/* ppoll, because poll is restarted by a call of its own after SIGSTOP and SIGCONT, restart_syscall,
 * which the filter would kill. */
ATD_NOINLINE long atd_ppoll(long fds, long n, long timespec)
{
	return atd_syscall(__NR_ppoll, fds, n, timespec, 0, 0);
}

/* Sleeps until something happens to the descriptor; 0 then. */
ATD_FN int atd_await(int fd)
{
	struct atd_pollfd watch;
	long ret;

	watch.fd = fd;
	watch.events = ATD_POLLIN;
	do
		ret = atd_ppoll(atd_arg(&watch), 1, 0);
	while (ret == -EINTR);
	return ret > 0 ? 0 : -1;
}

enum { ATD_MS = 1000, ATD_S = 1000000 };	/* in microseconds */
/* Sleeps for so many microseconds, less than a second: the kernel refuses a timeout of a billion
 * nanoseconds.  Returns 0, or -errno. */
ATD_NOINLINE long atd_nap(long us)
{
	struct atd_timespec t;
	long ret;

	t.sec = 0;
	t.nsec = us * 1000;
	do	/* the call itself leaves in t what remains */
		ret = atd_ppoll(0, 0, atd_arg(&t));
	while (ret == -EINTR);
	return ret;
}

/*
 * A step of a wait that looks, sleeps and looks again.  Sleeps for 20 microseconds and a sixteenth
 * of what the wait has slept so far, half a second at most, and adds that to *slept: to look ever
 * less often leaves the CPU to the process that is waited for.  Returns 1; 0 when limit microseconds
 * have been slept, for no wait is without an end; or -errno.
 */
ATD_NOINLINE long atd_sleep_on(long *slept, long limit)
{
	long us = 20 + (*slept >> 4), ret;	/* a division may be a call */

	if (*slept >= limit)
		return 0;
	if (us > ATD_S / 2)
		us = ATD_S / 2;
	*slept += us;
	ret = atd_nap(us);
	return ret < 0 ? ret : 1;
}

/*
 * The one static object.
 *
 * After fork the child has a copy, with another vmm in it than its own PID.
 */
#ifndef ASYNC_TEARDOWN_THREADS
#define ASYNC_TEARDOWN_THREADS 1
#endif
#if ASYNC_TEARDOWN_THREADS < 1 || ASYNC_TEARDOWN_THREADS > 1024
#error "async_teardown.h: ASYNC_TEARDOWN_THREADS has to be 1 to 1024"
#endif
#ifndef ASYNC_TEARDOWN_RANGES
#define ASYNC_TEARDOWN_RANGES 32
#endif
#if ASYNC_TEARDOWN_RANGES < 1 || ASYNC_TEARDOWN_RANGES > 4096
#error "async_teardown.h: ASYNC_TEARDOWN_RANGES has to be 1 to 4096"
#endif
/* The unused top of a stack, and the whole of it.  On s390x and ppc64 a function writes to its
 * caller's frame, and the first function has no caller.  Frames are large there, and where
 * functions save vector registers. */
#if defined(__s390x__) || defined(__powerpc64__) || defined(__mips__) || \
	defined(__ARM_FEATURE_SVE) || defined(__riscv_vector)
enum { ATD_STACK_TOP = 256, ATD_STACK_SIZE = 3072 };
#else
enum { ATD_STACK_TOP = 0, ATD_STACK_SIZE = 768 };
#endif
#ifndef ATD_STACK_LESS		/* for a test */
#define ATD_STACK_LESS 0
#endif
enum {
	ATD_THREADS = ASYNC_TEARDOWN_THREADS,
	ATD_RANGES = ASYNC_TEARDOWN_RANGES,
	ATD_KEPT = 8,
	ATD_WORDS = (ATD_STACK_SIZE - ATD_STACK_LESS) / (int)sizeof(long),
	ATD_SPARE = ATD_STACK_SIZE / 3 / (int)sizeof(long)	/* set-up has to leave them 0 */
};
enum { ATD_WANTED = 1 << 30 };	/* in lock: another thread sleeps for it */
/* How far the helper has come; DOOMED: the VMM has killed it; -errno: it has failed and will exit. */
enum { ATD_READY = 0, ATD_SETTING_UP = 1, ATD_LOCKING = 2, ATD_DOOMED = 3 };

struct atd_fds { int n, fd[ATD_KEPT]; };
struct atd_area { unsigned long from, to; };	/* to is 0: none */

static struct {
	/* Told by the VMM: its RAM, also while the helper lives; last the helper's image. */
	struct atd_area area[ATD_RANGES + 1];
	/* For the next helper: these change only while there is none. */
	struct atd_fds kept;
	int threads;		/* 0: all */

	/* The helper's own.  First a buffer: for one on the stack, a compiler that initializes all
	 * locals may call memset. */
	union {
		char bytes[64];
		struct atd_dirent dirent; struct atd_rlimit limit; struct atd_sigevent event;
	} scratch;
	struct atd_cap_data caps[2];
	unsigned long page;	/* its size */
	int pidfd;		/* of the VMM; or -errno */
	int timer;		/* ends a release that hangs; -1: none, and no other threads */
	int pipe[2];		/* its other threads sleep on it until their work begins */
	int ready, done;	/* how many of them are under their filter; have finished */
	int taken;		/* the last kept descriptor that a thread has taken, from 0 on */

	/* The last one is the first thread's.  What overflows them spoils what stands before them
	 * here, and nothing of the VMM's. */
	unsigned long stack[ATD_THREADS][ATD_WORDS] __attribute__((__aligned__(64)));

	/* For the helper, from start. */
	int filtered;		/* is there a seccomp filter already? */
	int may_lock;		/* its pages in memory */

	/* The VMM's. */
	int lock;		/* 0, or the PID of the process that is inside; and ATD_WANTED */
	int vmm;		/* the PID to outlive: who started the helper */
	int pid;		/* the helper, dead or alive; or 0 */
	int alive;		/* the kernel makes it 0 when the helper has ended */
	int progress;		/* of the helper: ATD_READY and so on, or -errno */
	int status;		/* of a child that has been reaped */
	int result;		/* what start returns */
} atd_shared __attribute__((__aligned__(64)));

/* The end of the addresses.  On 64 bits the top byte may not count: on arm64, 1 << 56 is 0. */
#define ATD_TOP (sizeof(long) == 8 ? 1UL << (8 * sizeof(long) - 8) : 0UL)

/*
 * What the VMM tells.
 *
 * The VMM may be killed anywhere in here, and its helper then reads the table.  So an area does not
 * count while its end is 0, and its start is written before its end.
 */
ATD_OPAQUE ASYNC_TEARDOWN_API int async_teardown_ram(void *start, unsigned long size)
{
	const unsigned long from = (unsigned long)atd_arg(start), to = size ? from + size : 0;
	struct atd_area *const image = &atd_shared.area[ATD_RANGES], *a;
	unsigned long none;

	/* No end past the top, also when rounded up, and no tag in the top byte. */
	if (!from || (size && to <= from) || to > ATD_TOP - 0x10000)
		return -EINVAL;
	for (a = atd_shared.area; a < image; a++)
		if (__atomic_load_n(&a->from, __ATOMIC_RELAXED) == from) {
			__atomic_store_n(&a->to, to, __ATOMIC_RELEASE);
			if (!size)
				__atomic_store_n(&a->from, 0, __ATOMIC_RELEASE);
			return 0;
		}
	for (a = atd_shared.area; size && a < image; a++) {
		none = 0;
		if (__atomic_compare_exchange_n(&a->from, &none, from, 0,
				__ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
			__atomic_store_n(&a->to, to, __ATOMIC_RELEASE);
			return 0;
		}
	}
	return size ? -ENOSPC : -ENOENT;
}

ATD_OPAQUE ASYNC_TEARDOWN_API int async_teardown_keep(const int *fds, int n)
{
	const int self = (int)atd_call(__NR_getpid, 0);
	int i, j;

	if (n < 0 || n > ATD_KEPT)
		return -EINVAL;
	for (i = 0; i < n; i++) {
		if (fds[i] < 0)
			return -EBADF;
		for (j = 0; j < i; j++)
			if (fds[i] == fds[j])
				return -EINVAL;
	}
	/* A helper that lives, or that another thread is about to start, has not got them: they would
	 * close with the VMM, and that would be taken for its sign. */
	if ((__atomic_load_n(&atd_shared.lock, __ATOMIC_ACQUIRE) & ~ATD_WANTED) == self ||
	    (__atomic_load_n(&atd_shared.pid, __ATOMIC_RELAXED) &&
	     __atomic_load_n(&atd_shared.alive, __ATOMIC_ACQUIRE) && atd_shared.vmm == self))
		return -EBUSY;
	for (i = 0; i < n; i++)
		atd_shared.kept.fd[i] = fds[i];
	atd_shared.kept.n = n;
	return 0;
}

ATD_OPAQUE ASYNC_TEARDOWN_API int async_teardown_threads(int n)
{
	n = n < 1 ? 1 : n > ATD_THREADS ? ATD_THREADS : n;
	__atomic_store_n(&atd_shared.threads, n, __ATOMIC_RELAXED);
	return n;
}

/*
 * The VMM's side.
 *
 * One thread at a time, with signals blocked: no handler may run in the helper, nor call in here
 * while the lock is held.  Not SIGSYS, by which a filter of the VMM's may want to answer a call:
 * that is forced, and fatal if it is blocked.
 */
ATD_FN long atd_enter(struct atd_sigset *old, int self)
{
	struct atd_sigset most;
	long ret;
	int holder, naps = 0;

	atd_fill(&most, ~0UL);
	most.bits[0] &= ~(1UL << (ATD_SIGSYS - 1));
	atd_fill(old, ~0UL);
	ret = atd_sigmask(ATD_SIG_BLOCK, &most, atd_arg(old));
	/* The kernel never says that SIGKILL is blocked: if old still does, the kernel has not
	 * written it, but a handler of SIGSYS has answered. */
	if (ret >= 0 && (ret > 0 || atd_blocked(old, ATD_SIGKILL)))
		ret = -EPERM;
	if (ret < 0)
		return ret;

	do {
		holder = __atomic_load_n(&atd_shared.lock, __ATOMIC_RELAXED);
		/* Take it, unless this process holds it: another PID is that of a process of which
		 * this one is a fork. */
		while ((holder & ~ATD_WANTED) != self)
			if (__atomic_compare_exchange_n(&atd_shared.lock, &holder, self, 0,
					__ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
				return 0;
		__atomic_compare_exchange_n(&atd_shared.lock, &holder, self | ATD_WANTED, 0,
			__ATOMIC_RELAXED, __ATOMIC_RELAXED);
		/* Not for ever: the holder may be in a process that had the same PID. */
		ret = atd_nap(ATD_MS);
	} while (ret == 0 && ++naps < 30000);
	atd_sigmask(ATD_SIG_SETMASK, old, 0);
	return ret < 0 ? ret : -ETIMEDOUT;
}

ATD_FN void atd_leave(struct atd_sigset *old)
{
	const int held = __atomic_exchange_n(&atd_shared.lock, 0, __ATOMIC_RELEASE);
	long slept = 0;

	/* The other thread looks once a millisecond.  Without this, one that starts and stops in a
	 * loop would never let it in. */
	while (held & ATD_WANTED && !__atomic_load_n(&atd_shared.lock, __ATOMIC_RELAXED) &&
	       atd_sleep_on(&slept, 2 * ATD_MS) > 0)
		;
	atd_sigmask(ATD_SIG_SETMASK, old, 0);
}

ATD_NOINLINE long atd_wait(long pid)
{
	return atd_syscall(__NR_wait4, pid, atd_arg(&atd_shared.status),
		ATD_WNOHANG | ATD_WCLONE, 0, 0);
}

/* Waits for a child to end, and reaps it.  Returns 0; -ETIMEDOUT when it is frozen, traced, or in
 * the close of a file whose server does not answer; or wait4's error. */
ATD_FN long atd_reap(long pid)
{
	long ret, slept = 0;

	while ((ret = atd_wait(pid)) == 0)
		if (atd_sleep_on(&slept, 30 * ATD_S) <= 0)
			return -ETIMEDOUT;
	return ret > 0 ? 0 : ret;
}

/* 1 if there is a helper, 0 if not, and then its stack is free; or wait4's error. */
ATD_FN long atd_running(int self)
{
	/* Without a helper, wait for the caller, who is no child of its own: so it is known before
	 * the clone whether wait4 is permitted. */
	const int pid = atd_shared.vmm == self && atd_shared.pid ? atd_shared.pid : self;
	long ret = atd_wait(pid);

	if (ret == 0) {
		if (__atomic_load_n(&atd_shared.alive, __ATOMIC_ACQUIRE))
			return 1;
		/* It was killed and has left the memory, but cannot be reaped yet.  Or somebody
		 * else has reaped it, and its PID is now another child's: forget that, in the end. */
		atd_reap(pid);
		ret = 1;
	}
	/* On -ECHILD, keep its PID: this may be a vfork child, in a PID namespace where its number
	 * is the VMM's. */
	if (ret > 0)
		atd_shared.pid = 0;
	return ret < 0 && ret != -ECHILD ? ret : 0;
}

/* Kills the helper and reaps it. */
ATD_FN long atd_end(void)
{
	/* Read once: where another process shares this memory, which is forbidden, it may become 0,
	 * and a signal to 0 would end the VMM's process group. */
	const int pid = __atomic_load_n(&atd_shared.pid, __ATOMIC_RELAXED);
	long ret = pid > 0 ? atd_kill(pid, ATD_SIGKILL) : -ESRCH;

	if (ret < 0)
		return ret;
	__atomic_store_n(&atd_shared.progress, ATD_DOOMED, __ATOMIC_RELAXED);
	ret = atd_reap(pid);
	if (ret == 0 || ret == -ECHILD)
		atd_shared.pid = 0;
	return ret == -ECHILD ? 0 : ret;
}

/* Has set-up come too near to the end of a stack?  Then later starts fail as well. */
ATD_FN int atd_overflown(void)
{
	unsigned long any = 0;
	int i, j;

	for (i = 0; i < ATD_THREADS; i++)
		for (j = 0; j < ATD_SPARE; j++)
			any |= *(volatile unsigned long *)&atd_shared.stack[i][j];
	return any != 0;
}

/* Where the stack begins that a thread of the helper runs on, from 0 on. */
ATD_FN void *atd_stack(int thread)
{
	return (char *)(atd_shared.stack + ATD_THREADS - thread) - ATD_STACK_TOP;
}

ATD_NOINLINE __attribute__((__noreturn__)) void atd_main(void);

/* Returns the helper's PID; -errno; or 0 if it did not lock its memory in time, and is gone. */
ATD_NOINLINE long atd_start_helper(int may_lock, const char *callers_frame)
{
	long ret, pid, dead, slept = 0;
	int progress, overflown;

	/* Compilers can be told to align each frame to more than the helper's stack has room for.
	 * The starter's stack has room to see it. */
	if (ATD_SPLIT || callers_frame - (const char *)__builtin_frame_address(0) >= ATD_STACK_SIZE / 3)
		return -EOVERFLOW;
	atd_shared.may_lock = may_lock;
	atd_shared.ready = 0;
	atd_shared.alive = 1;
	atd_shared.progress = ATD_SETTING_UP;
	pid = atd_clone(ATD_CLONE_VM | ATD_CLONE_FILES | ATD_CLONE_CHILD_CLEARTID,
		atd_stack(0), atd_main, atd_arg(&atd_shared.alive));
	if (pid < 0)
		return pid;
	atd_shared.pid = (int)pid;

	/* It looks again and again: to wake it would be one more call in the helper's filter. */
	do {
		dead = atd_wait(pid);
		progress = __atomic_load_n(&atd_shared.progress, __ATOMIC_ACQUIRE);
		if (dead || progress <= ATD_READY)
			break;
		/* A SIGSTOP of the VMM's process group may have hit it just before setsid.  The
		 * group's SIGCONT then does not. */
		if (slept > 20 * ATD_MS)
			atd_kill(pid, ATD_SIGCONT);
	} while (atd_sleep_on(&slept, progress == ATD_LOCKING ? ATD_S : 30 * ATD_S) > 0);
	overflown = atd_overflown();
	if (!dead && progress == ATD_READY && !overflown)
		return pid;

	if (!dead) {
		/* One that has failed exits by itself, so no policy can keep it from that. */
		ret = progress < 0 ? atd_reap(pid) : atd_end();
		if (ret < 0)
			return ret;
	}
	atd_shared.pid = 0;
	if (overflown)
		return -EOVERFLOW;
	if (progress < 0)
		return progress;
	if (dead < 0)		/* another thread has reaped it */
		return dead;
	if (!dead)
		return progress == ATD_LOCKING ? 0 : -ETIMEDOUT;
	return (atd_shared.status & 0x7f) == ATD_SIGSYS ? -EPERM : -ECANCELED;
}

ATD_NOINLINE __attribute__((__noreturn__)) void atd_starter(void)
{
	const char *const frame = (const char *)__builtin_frame_address(0);
	long (*fn)(int, const char *) = atd_start_helper;
	long ret;

	__asm__("" : "+r"(fn));	/* gcc does not align frames for a function that it knows */
	ret = fn(!atd_shared.filtered, frame);
	atd_shared.result = (int)(ret ? ret : fn(0, frame));	/* 0: again, without the lock */
	for (;;)
		atd_call(__NR_exit, 0);
}

/*
 * The first steps of a process that shares this memory.  It blocks all signals, so no handler of
 * SIGSYS runs in it, nor on the helper's small stack.  It dies with the thread that has cloned it,
 * which waits for it: otherwise a SIGSTOP could hold it, and the memory, beyond the VMM's death.
 *
 * And it dumps no core: that would be of the VMM's memory, and written with a uid that the VMM may
 * have given up by then.  A program in core_pattern gets a dump even at a limit of 0, but not at 1;
 * a socket there (Linux 6.16) gets one at any limit.  SELinux wants a permission to change a hard
 * limit: so only a hard limit of 0 is changed, and a refusal does not matter.
 */
ATD_NOINLINE long atd_first_steps(void)
{
	struct atd_rlimit *const limit = &atd_shared.scratch.limit;
	struct atd_sigset all;
	long ret;
	int raise;

	atd_fill(&all, ~0UL);
	ret = atd_sigmask(ATD_SIG_BLOCK, &all, 0);
	if (ret < 0)
		return ret;
	ret = atd_prctl(ATD_PR_SET_PDEATHSIG, ATD_SIGKILL, 0);
	if (ret < 0)
		return ret;
	ret = atd_syscall(__NR_prlimit64, 0, ATD_RLIMIT_CORE, 0, atd_arg(limit), 0);
	if (ret < 0)
		return ret;
	raise = limit->max == 0;
	if (raise)
		limit->max = 1;
	limit->cur = 1;
	ret = atd_syscall(__NR_prlimit64, 0, ATD_RLIMIT_CORE, atd_arg(limit), 0, 0);
	return raise ? 0 : ret;
}

/*
 * Where there is a filter, a process first tries whether it refuses exit (start would wait for ever:
 * see atd_launch), and whether a handler of SIGSYS answers rt_sigprocmask (it would answer the
 * helper's calls, too).  If that handler does block SIGSYS, as the kernel would, the second call
 * kills this process.
 */
ATD_NOINLINE __attribute__((__noreturn__)) void atd_try(void)
{
	struct atd_sigset all;

	atd_first_steps();
	atd_fill(&all, ~0UL);
	atd_sigmask(ATD_SIG_BLOCK, &all, atd_arg(&all));
	if (atd_blocked(&all, ATD_SIGSYS) && !atd_blocked(&all, ATD_SIGKILL))
		atd_call(__NR_exit, 0);
	atd_call(__NR_exit_group, 1);
	__builtin_trap();
}

/*
 * A thread made for that clones the helper, because a new thread has no area for restartable
 * sequences.  From Linux 4.18 to some 5.4 (kernel commit 463f550fb47b), a helper cloned by the
 * caller would share the caller's area: the kernel would write the helper's CPU into it, and kill
 * helper and VMM when the caller has ended and the area is unmapped.
 *
 * With CLONE_VFORK the caller waits until the thread has let go of the memory.  So the thread can
 * run on the caller's stack, below all that is in use; and if a filter answers one of its calls by
 * SIGSYS, the handler has room.  If a filter refused exit, the caller would wait for ever: see
 * atd_try.
 */
ATD_FN long atd_launch(int self)
{
	char *const below = (char *)__builtin_frame_address(0) - 2048;
	char *const stack = below - ((unsigned long)atd_arg(below) & 63);
	long ret, slack, slept = 0;

	/* The timer slack lengthens every sleep, and the helper inherits it. */
	slack = atd_prctl(ATD_PR_GET_TIMERSLACK, 0, 0);
	if ((unsigned long)slack > -4096UL)
		return slack;
	ret = atd_prctl(ATD_PR_SET_TIMERSLACK, 1, 0);
	if (ret < 0)
		return ret;

	ret = atd_nap(1);	/* a filter may refuse it: then nothing could be waited for */
	atd_shared.filtered = atd_prctl(ATD_PR_GET_SECCOMP, 0, 0) != 0;
	if (ret == 0 && atd_shared.filtered) {
		ret = atd_clone(ATD_CLONE_VM | ATD_CLONE_FILES | ATD_CLONE_VFORK, stack, atd_try, 0);
		if (ret > 0)
			ret = atd_reap(ret);
		if (ret == 0 && atd_shared.status)
			ret = -EPERM;
	}

	atd_shared.result = -EPERM;	/* should a filter's handler answer a call */
	if (ret == 0) {
		atd_shared.pid = 0;
		__atomic_store_n(&atd_shared.vmm, self, __ATOMIC_RELAXED);
		ret = atd_clone(ATD_CLONE_VM | ATD_CLONE_SIGHAND | ATD_CLONE_THREAD |
			ATD_CLONE_FILES | ATD_CLONE_VFORK, stack, atd_starter, 0);
		/* For a moment there still is that thread.  While it is there, the caller cannot
		 * unshare its user namespace, for example. */
		while (ret > 0 && atd_kill(ret, 0) == 0 && atd_sleep_on(&slept, ATD_S) > 0)
			;
	}
	atd_prctl(ATD_PR_SET_TIMERSLACK, slack, 0);
	return ret < 0 ? ret : atd_shared.result;
}

/* Sees to it that there is a helper, or that there is none. */
ATD_NOINLINE long atd_switch(int self, int on)
{
	struct atd_sigset old;
	long ret = atd_enter(&old, self);

	if (ret < 0)
		return ret;
	ret = atd_running(self);
	if (ret > 0 && on && atd_shared.progress == ATD_READY)
		ret = atd_shared.pid;
	else {
		if (ret > 0)
			ret = atd_end();
		if (ret == 0 && on)
			ret = atd_launch(self);
	}
	atd_leave(&old);
	return ret;
}

ATD_OPAQUE ASYNC_TEARDOWN_API int async_teardown_start(void)
{
	const int self = (int)atd_call(__NR_getpid, 0);

	if (self <= 1)
		return self < 0 ? self : -EOPNOTSUPP;
	return (int)atd_switch(self, 1);
}

ATD_OPAQUE ASYNC_TEARDOWN_API int async_teardown_stop(void)
{
	const int self = (int)atd_call(__NR_getpid, 0);

	/* A child of fork has no helper, and one of vfork must not take over the lock: it runs on
	 * the memory of its parent, whose threads run too. */
	if (self < 0 || __atomic_load_n(&atd_shared.vmm, __ATOMIC_RELAXED) != self)
		return self < 0 ? self : 0;
	return (int)atd_switch(self, 0);
}

/*
 * The helper, in the order of its life: it is set up, waits for the VMM's end, releases what is
 * mapped, does the rest of the work with its threads, and leaves.
 *
 * The filter is all that the helper may call once start has returned.  An attacker who controls the
 * VMM can rewrite the helper's memory; the filter keeps him from privileges that the VMM gave up
 * after start.  The whole call number is compared, so that of an x32 call, which has bit 30 set,
 * matches nothing.
 */
#define ATD_AUDIT_ARCH (ATD_EM | (sizeof(long) == 8 ? 0x80000000U : 0U) | \
	(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0x40000000U : 0U))
#define ATD_ARG_LOW(i)	(16 + 8 * (i) + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0 : 4))
#define ATD_LOAD(offset)	{ 0x20, 0, 0, offset }	/* of struct seccomp_data */
#define ATD_UNLESS(value, skip)	{ 0x15, 0, skip, value }
#define ATD_KILL	{ 0x06, 0, 0, 0x80000000U }	/* all threads; before Linux 4.14 this one */
#define ATD_ALLOW	{ 0x06, 0, 0, 0x7fff0000U }
/* A rule; and one with a value for an argument.  Each is whole in itself: it finds the call's
 * number loaded, and leaves it so. */
#define ATD_MAY(nr)	ATD_UNLESS(nr, 1), ATD_ALLOW
#define ATD_MAY_IF(nr, i, value) \
	ATD_UNLESS(nr, 4), ATD_LOAD(ATD_ARG_LOW(i)), ATD_UNLESS(value, 1), ATD_ALLOW, ATD_LOAD(0)

static const struct atd_insn atd_filter[] = {
	ATD_LOAD(4), { 0x15, 1, 0, ATD_AUDIT_ARCH }, ATD_KILL,	/* skip one if equal */
	ATD_LOAD(0),
	/* sleep, and wait on the VMM's pidfd */
	ATD_MAY(__NR_ppoll),
	/* without one, wait for a death signal or some time */
	ATD_MAY(__NR_rt_sigtimedwait),
	/* is the parent still the VMM? */
	ATD_MAY(__NR_getppid),
	/* does the VMM's PID still exist? */
	ATD_MAY_IF(__NR_kill, 1, 0),
	/* does another task use the memory?  With this flag it changes nothing */
	ATD_MAY_IF(__NR_unshare, 0, ATD_CLONE_VM),
	/* release what is mapped and kept */
	ATD_MAY(__NR_munmap),
	ATD_MAY(__NR_close),
	/* but do not hang in that for ever: a timer, but not on another process's CPU time, which
	 * it would tell */
	ATD_MAY_IF(__NR_timer_create, 0, ATD_CLOCK_MONOTONIC),
	ATD_MAY(__NR_timer_settime),
	/* free the RAM */
	ATD_MAY_IF(__NR_madvise, 2, ATD_MADV_DONTNEED),
	ATD_MAY_IF(__NR_madvise, 2, ATD_MADV_DONTNEED_LOCKED),
	/* leave */
	ATD_MAY(__NR_exit),
	ATD_MAY(__NR_exit_group),
	ATD_KILL
};

ATD_FN long atd_install_filter(void)
{
	static const struct atd_prog prog = {
		sizeof(atd_filter) / sizeof(atd_filter[0]), { 0 }, atd_filter
	};

	return atd_prctl(ATD_PR_SET_SECCOMP, ATD_SECCOMP_MODE_FILTER, atd_arg(&prog));
}

/* The lowest kept descriptor that is not below fd; or -1. */
ATD_NOINLINE long atd_next_kept(long fd)
{
	long next = -1;
	int i;

	for (i = 0; i < atd_shared.kept.n; i++)
		if (atd_shared.kept.fd[i] >= fd && (next < 0 || atd_shared.kept.fd[i] < next))
			next = atd_shared.kept.fd[i];
	return next;
}

/* Closes what is not kept of the n descriptors from 0 on. */
ATD_FN void atd_close_below(long n)
{
	long fd;

	for (fd = 0; fd < n; fd++)
		if (atd_next_kept(fd) != fd)
			atd_call(__NR_close, fd);
}

/*
 * Gives the helper, which was cloned with CLONE_FILES, a descriptor table of its own, with nothing
 * in it but what is kept.  Cloning without would copy the table.
 */
ATD_FN long atd_drop_files(void)
{
	char *const buf = atd_shared.scratch.bytes;
	const struct atd_dirent *d;
	const char *s;
	long ret, dir, len, i, fd, next, low, top = -1, seen = 0;

	while ((next = atd_next_kept(top + 1)) >= 0)
		top = next;
	for (low = 0; atd_next_kept(low) == low; low++)	/* it will not be open any more */
		;
	/* Linux 5.9: this copies nothing above the highest that is kept. */
	ret = atd_syscall(ATD_NR_CLOSE_RANGE, top + 1, ~0L, ATD_CLOSE_RANGE_UNSHARE, 0, 0);
	if (ret == 0) {
		if (top < 0)
			return 0;
		atd_close_below(top);
	} else {
		/* Until the table is ours, closing would close the VMM's descriptors. */
		ret = atd_call(__NR_unshare, ATD_CLONE_FILES);
		if (ret < 0)
			return ret;
		atd_call(__NR_close, low);	/* room for dir, should the table be full */
		dir = atd_syscall(__NR_openat, ATD_AT_FDCWD, atd_arg("/proc/self/fd"), 0, 0, 0);
		while ((len = atd_syscall(__NR_getdents64, dir, atd_arg(buf),
				sizeof(atd_shared.scratch), 0, 0)) > 0) {
			for (i = 0; i < len; i += d->reclen) {
				d = (const struct atd_dirent *)(const void *)(buf + i);
				for (fd = 0, s = d->name; *s >= '0'; s++)
					fd = fd * 10 + (*s - '0');
				if (s == d->name)	/* "." or ".." */
					continue;
				if (fd == dir)
					seen = 1;
				else if (atd_next_kept(fd) != fd)
					atd_call(__NR_close, fd);
			}
		}
		if (seen)
			atd_call(__NR_close, dir);
		else	/* This is no /proc.  Go up to fs.nr_open's default: RLIMIT_NOFILE may
			 * have been lowered since. */
			atd_close_below(1L << 20);
	}

	/* If close is refused, nothing above has worked. */
	ret = atd_call(__NR_close, low);
	return ret == -EBADF ? 0 : ret;
}

/* "cleanup/" and the VMM's PID: 15 characters at most, the kernel's limit. */
ATD_FN long atd_set_name(int pid)
{
	static const char prefix[] = "cleanup/";
	volatile char *at = atd_shared.scratch.bytes + 15;	/* or it is a memcpy */
	unsigned n, tenth;
	int i;

	*at = 0;
	for (n = (unsigned)pid; n > 0; n = tenth) {
		/* A division may be a call of libgcc. */
		tenth = (unsigned)(n * 0xcccccccdULL >> 35);
		*--at = (char)('0' + (n - tenth * 10));
	}
	for (i = 8; i-- > 0; )
		*--at = prefix[i];
	return atd_prctl(ATD_PR_SET_NAME, atd_arg(at), 0);
}

/*
 * The fallback where there is no pidfd.  The kernel sends the death signal when the helper's parent
 * thread dies, even if the VMM lives on, but not if the VMM has changed to a uid that may not signal
 * the helper.  So the signal proves nothing, and only shortens the wait.  With a zero timeout this
 * tries whether a filter permits the call.
 */
ATD_NOINLINE long atd_wait_signal(long ns)
{
	struct atd_sigset set;
	struct atd_timespec t;

	atd_fill(&set, 0);
	set.bits[0] = 1UL << (ATD_SIGHUP - 1);
	t.sec = 0;
	t.nsec = ns;
	return atd_syscall(__NR_rt_sigtimedwait, atd_arg(&set), 0, atd_arg(&t),
		ATD_SIGSET_BYTES, 0);
}

/*
 * Sets the time after which the helper is killed (its exit then frees everything); 0: never.  It is
 * set anew whenever the helper has got on.  Another process may have asked a userfaultfd to be told
 * of unmapping: the kernel then waits for that process to read, and only a fatal signal ends the
 * wait.  An hour, because one call may free a whole memfd, or end a protected guest.
 */
#ifndef ATD_PATIENCE	/* for a test */
#define ATD_PATIENCE 3600
#endif
ATD_NOINLINE long atd_set_timer(long seconds)
{
	struct atd_itimerspec t;

	t.interval.sec = t.interval.nsec = t.value.nsec = 0;
	t.value.sec = seconds;
	return atd_syscall(__NR_timer_settime, atd_shared.timer, 0, atd_arg(&t), 0, 0);
}

/* Has the VMM told of RAM, or of descriptors? */
ATD_NOINLINE int atd_has_work(void)
{
	int i = 0, work = atd_shared.kept.n;

	while (!work && i < ATD_RANGES)
		work = atd_shared.area[i++].to != 0;
	return work;
}

/*
 * The image that the helper runs in: the program or shared library that this file was compiled
 * into, with its code, constants and atd_shared; and in it the helper's code.  The linker knows
 * their bounds.  The symbols are not weak: GNU ld with -z pack-relative-relocs gives the GOT slot
 * of a weak __ehdr_start no relocation, and it would read as 0.
 */
#define ATD_HIDDEN __attribute__((__visibility__("hidden")))
extern const char atd_image_start[] __asm__("__ehdr_start") ATD_HIDDEN,
	atd_image_end[] __asm__("_end") ATD_HIDDEN, atd_text_start[] __asm__("__start_atd_text") ATD_HIDDEN,
	atd_text_end[] __asm__("__stop_atd_text") ATD_HIDDEN;
/* gcc does not tell the assembler the visibility of a name that __asm__ gives.  Without this, _end
 * could be that of another module. */
ATD_FN void atd_hide_symbols(void)
{
	__asm__ volatile(".hidden __ehdr_start\n\t.hidden _end\n\t"
		".hidden __start_atd_text\n\t.hidden __stop_atd_text");
}

/*
 * The helper's last steps must not depend on the program's file.  Their code may not have run for
 * months, and the kernel reclaims clean pages: if the file's server (FUSE, NFS) did not answer then,
 * the helper would hang, with all of the memory.  mlock may be refused; and where there is a filter of
 * the VMM's, which need not allow it, it is not called.  It waits while a thread of the VMM holds
 * mmap_lock, say in a large munmap: see atd_start_helper.
 */
ATD_FN void atd_lock_memory(void)
{
	if (!atd_shared.may_lock)
		return;
	__atomic_store_n(&atd_shared.progress, ATD_LOCKING, __ATOMIC_RELAXED);
	atd_hide_symbols();
	atd_syscall(__NR_mlock, atd_arg(atd_text_start), atd_text_end - atd_text_start, 0, 0, 0);
	atd_syscall(__NR_mlock, atd_arg(&atd_shared), sizeof(atd_shared), 0, 0, 0);
	__atomic_store_n(&atd_shared.progress, ATD_SETTING_UP, __ATOMIC_RELAXED);
}

ATD_FN void atd_find_image(void)
{
	atd_hide_symbols();
	atd_shared.area[ATD_RANGES].from = (unsigned long)atd_arg(atd_image_start);
	atd_shared.area[ATD_RANGES].to = (unsigned long)atd_arg(atd_image_end);
}

/* Finds what the release needs: the image, the page size, and a timer.  0 if there is no timer. */
ATD_NOINLINE int atd_prepare(void)
{
	struct atd_sigevent *const event = &atd_shared.scratch.event;

	/* madvise of no bytes succeeds at every multiple of the page size.  x86 has one. */
	atd_shared.page = 4096;
	while (ATD_EM != 62 && ATD_EM != 3 && atd_madvise(atd_shared.page, 0, ATD_MADV_DONTNEED) == -EINVAL &&
	       atd_shared.page < 1UL << 20)
		atd_shared.page *= 2;
	atd_find_image();
	event->signo = ATD_SIGKILL;
	event->notify = 0;	/* SIGEV_SIGNAL */
	if (atd_syscall(__NR_timer_create, ATD_CLOCK_MONOTONIC, atd_arg(event),
			atd_arg(&atd_shared.timer), 0, 0) != 0 || atd_set_timer(0) != 0)
		atd_shared.timer = -1;
	return atd_shared.timer != -1;
}

/*
 * Prepares the release.  Under a filter, first makes the later calls once, with arguments that
 * change nothing.  If the filter kills a thread for one of them, that thread now is the whole helper,
 * and start says so; later the other threads would stay.  If nothing has been told yet, the filter
 * need not allow the calls of the release: they are not tried, and the helper has one thread.  munmap
 * is not tried: it would wait for mmap_lock, which a thread of the VMM may hold.
 */
ATD_FN void atd_rehearse(void)
{
	atd_shared.timer = -1;
	if (atd_shared.filtered) {
		atd_call(__NR_getppid, 0);
		atd_prctl(ATD_PR_SET_SECCOMP, ATD_SECCOMP_MODE_FILTER, 0);
		if (!atd_has_work())
			return;
		atd_unshare_vm();
		atd_call(__NR_close, -1);
		atd_madvise(0, 0, ATD_MADV_DONTNEED_LOCKED);
	}
	atd_prepare();
}

/*
 * Reads the permitted set from /proc/self/status, and sees whether a capability is in effect or
 * inheritable.  What capget shows may be less: the sets are cut to what a profile grants
 * (AppArmor), and to write that back would shrink the permitted set.
 */
enum { ATD_UNKNOWN, ATD_NO_CAPS, ATD_SOME_CAPS };
ATD_FN int atd_read_caps(void)
{
	const long fd = atd_syscall(__NR_openat, ATD_AT_FDCWD, atd_arg("/proc/self/status"), 0, 0, 0);
	const char *const buf = atd_shared.scratch.bytes;
	unsigned long long value = 0, in_use = 0;
	unsigned key = 0, set = 0;
	int found = 0;
	long i, len;

	/* "CapPrm:", a tab, and 16 digits: the last that come before the line's end. */
	while ((len = atd_syscall(__NR_read, fd, atd_arg(buf), sizeof(atd_shared.scratch), 0, 0)) > 0)
		for (i = 0; i < len; i++) {
			key = key << 8 | (unsigned char)buf[i];
			if (key >> 8 == ('C' << 16 | 'a' << 8 | 'p'))
				set = key & 0xff;
			if (buf[i] != '\n') {
				value = value << 4 | ((unsigned)(buf[i] & 15) + (buf[i] > '9' ? 9U : 0U));
				continue;
			}
			if (set == 'P') {
				atd_shared.caps[0].permitted = (unsigned)value;
				atd_shared.caps[1].permitted = (unsigned)(value >> 32);
				found = 1;
			} else if (set == 'I' || set == 'E')
				in_use |= value;
			set = 0;
		}
	atd_call(__NR_close, fd);
	return !found ? ATD_UNKNOWN : in_use ? ATD_SOME_CAPS : ATD_NO_CAPS;
}

/*
 * Leaves no capability in effect, and none inheritable, which empties the ambient set.  The
 * permitted set stays, but without capset, which the filter refuses, it cannot be put into effect.
 * It has to stay: a process without capabilities may trace only one whose permitted set is empty
 * too (cap_ptrace_access_check), and who traces the helper has the VMM's memory.  The uid stays for
 * the same reason: a change would also change the dumpable flag, which all that share the memory
 * have in common.
 */
ATD_FN long atd_drop_caps(void)
{
	static const struct atd_cap_header header = { ATD_CAPABILITY_VERSION_3, 0 };
	struct atd_cap_data *const caps = atd_shared.caps;
	const long ret = atd_syscall(__NR_capget, atd_arg(&header), atd_arg(caps), 0, 0, 0);
	const int none = ret == 0 && !(caps[0].effective | caps[0].inheritable |
		caps[1].effective | caps[1].inheritable);
	int known, i;

	/* A filter need not allow openat to a VMM without capabilities. */
	if (none && atd_shared.filtered)
		return 0;
	known = atd_read_caps();
	if (known == ATD_UNKNOWN && (ret < 0 || none))
		return ret;
	/* SELinux wants a permission for capset even if that changes nothing. */
	if (known == ATD_NO_CAPS)
		return 0;
	for (i = 0; i < 2; i++)
		caps[i].effective = caps[i].inheritable = 0;
	return atd_syscall(__NR_capset, atd_arg(&header), atd_arg(caps), 0, 0, 0);
}

ATD_NOINLINE __attribute__((__noreturn__)) void atd_worker(void);

/* The other threads, which help with all but the release.  They sleep on a pipe whose writing end
 * the first thread closes when their work begins. */
ATD_FN long atd_start_workers(void)
{
	const int told = __atomic_load_n(&atd_shared.threads, __ATOMIC_RELAXED);
	const int others = (told ? told : ATD_THREADS) - 1;
	long ret, slept = 0;
	int i;

	ret = others ? atd_call(__NR_pipe2, atd_arg(atd_shared.pipe)) : 0;
	if (ret < 0)
		return ret;
	for (i = 1; i <= others; i++) {
		ret = atd_clone(ATD_CLONE_VM | ATD_CLONE_FS | ATD_CLONE_FILES | ATD_CLONE_SIGHAND |
			ATD_CLONE_THREAD, atd_stack(i), atd_worker, 0);
		if (ret < 0)
			return ret;
	}
	while (__atomic_load_n(&atd_shared.ready, __ATOMIC_ACQUIRE) < others) {
		ret = __atomic_load_n(&atd_shared.progress, __ATOMIC_ACQUIRE);
		if (ret < 0)	/* one of them could not install the filter */
			return ret;
		if (atd_sleep_on(&slept, 30 * ATD_S) <= 0)
			return -ETIMEDOUT;
	}
	return 0;
}

/* If a step is refused, start fails with that error: a helper that lacks it would not be what the
 * VMM relies on. */
ATD_FN long atd_set_up(int vmm)
{
	struct atd_rlimit *const limit = &atd_shared.scratch.limit;
	long ret;
	int i;

	/* 1. No signals, no core dump; and until the helper is ready, it dies with the VMM. */
	ret = atd_first_steps();
	if (ret < 0)
		return ret;

	/* 2. A session of its own: a kill of the VMM's process group passes by. */
	ret = atd_call(__NR_setsid, 0);
	if (ret < 0)
		return ret;

	/* 3. Nothing held open but what is kept, no directory kept busy if that is permitted.  The
	 * VMM's limit may be lower than what a pidfd takes. */
	limit->cur = limit->max = 64;
	atd_syscall(__NR_prlimit64, 0, ATD_RLIMIT_NOFILE, atd_arg(limit), 0, 0);
	ret = atd_drop_files();
	if (ret < 0)
		return ret;
	for (i = 0; i < atd_shared.kept.n; i++) {
		ret = atd_syscall(__NR_fcntl, atd_shared.kept.fd[i], ATD_F_GETFD, 0, 0, 0);
		if (ret == -EBADF)
			return ret;
	}
	atd_call(__NR_chdir, atd_arg("/"));

	/* 4. A name to find it by. */
	ret = atd_set_name(vmm);
	if (ret < 0)
		return ret;

	/* 5. Its pages in memory; no privileges. */
	atd_lock_memory();
	ret = atd_drop_caps();
	if (ret < 0)
		return ret;
	ret = atd_prctl(ATD_PR_SET_NO_NEW_PRIVS, 1, 0);
	if (ret < 0)
		return ret;

	/* 6. The death watch: a pidfd (Linux 5.3) becomes readable when every thread has let go of
	 * the memory.  Without it, a signal and a poll. */
	atd_shared.pidfd = (int)atd_syscall(ATD_NR_PIDFD_OPEN, vmm, 0, 0, 0, 0);
	ret = atd_prctl(ATD_PR_SET_PDEATHSIG, atd_shared.pidfd < 0 ? ATD_SIGHUP : 0, 0);
	if (ret < 0)
		return ret;
	if (atd_shared.pidfd < 0) {
		ret = atd_wait_signal(0);
		if (ret < 0 && ret != -EAGAIN)
			return ret;
		atd_unshare_vm();	/* may be refused; if it kills, then now */
	}
	atd_rehearse();

	/* 7. The other threads; each installs the filter for itself.  Not without pidfd, for
	 * unshare answers only a process of one thread. */
	if (ATD_THREADS > 1 && atd_shared.pidfd >= 0 && atd_shared.timer != -1) {
		ret = atd_start_workers();
		if (ret < 0)
			return ret;
	}
	ret = atd_install_filter();
	if (ret < 0)
		return ret;

	/* 8. The watch is armed.  Was that in time?  If the VMM had been killed before, its PID may
	 * be another's.  This is also the first call under the filter. */
	return atd_call(__NR_getppid, 0) == vmm ? ATD_READY : -ESRCH;
}

/* Waits until no other task uses the memory, and returns 0; or -EINVAL after a second, for two
 * helpers of one VMM would wait for each other.  Another error says that a filter refuses the
 * question, as those of containers do. */
ATD_FN long atd_wait_alone(void)
{
	long ret, slept = 0;

	while ((ret = atd_unshare_vm()) == -EINVAL && atd_sleep_on(&slept, ATD_S) > 0)
		;
	return ret;
}

/* Returns when no thread of the VMM uses the memory any more. */
ATD_FN void atd_outlive(int vmm)
{
	long slept = 0, max = 20 * ATD_MS, nap = ATD_MS / 5;

	if (atd_shared.pidfd < 0 || atd_await(atd_shared.pidfd) != 0) {
		while (atd_call(__NR_getppid, 0) == vmm && atd_unshare_vm() != 0)
			atd_wait_signal(500 * 1000 * 1000);
		/* Either the VMM has called execve, or its last thread has begun to exit.  Some
		 * threads may still hold the memory, and one that is about to let go of it is not
		 * always seen (4.18: exit_mm clears ->mm before mmput). */
		atd_wait_alone();
		max = 250 * ATD_MS;
	}

	/* From here on a filter may kill this thread alone (for kill, munmap, exit_group): then the
	 * timer ends the others. */
	if (atd_shared.ready > 0)
		atd_set_timer(60);

	/* The VMM's parent was woken at the same moment.  Let it have the CPU, and reap, before the
	 * kernel uses that CPU to free the memory. */
	for (; slept < max && atd_kill(vmm, 0) != -ESRCH; slept += nap, nap += nap >> 4)
		atd_nap(nap);
}

/* Rounds the areas to pages.  Returns 0 if the image is not where the linker has put it. */
ATD_FN int atd_survey(void)
{
	const unsigned long code = (unsigned long)atd_main, data = (unsigned long)atd_arg(&atd_shared);
	struct atd_area *const image = &atd_shared.area[ATD_RANGES], *a;

	/* The linker may not tell (0), or put .bss elsewhere (gold -Tbss), or the program was
	 * rewritten since (BOLT). */
	if (image->from < atd_shared.page || code < image->from || code >= image->to ||
	    data < image->from || data + sizeof(atd_shared) > image->to)
		return 0;
	for (a = atd_shared.area; a <= image; a++)
		if (a->from && a->to > a->from) {
			a->from &= -atd_shared.page;
			a->to = (a->to + atd_shared.page - 1) & -atd_shared.page;
		} else	/* none, or two threads' doing at once */
			a->to = 0;
	return 1;
}

/* 1 if return addresses are also on a shadow stack.  The kernel has mapped the helper's somewhere,
 * and it must not be unmapped. */
ATD_FN int atd_shadow_stack(void)
{
#if defined(__x86_64__)
	unsigned long ssp = 0;

	__asm__ volatile(".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8" : "+a"(ssp));	/* rdsspq rax */
	return ssp != 0;
#elif defined(__aarch64__)
	register unsigned long x16 __asm__("x16") = 1;

	__asm__ volatile("hint #40" : "+r"(x16));	/* chkfeat x16 */
	return x16 == 0;
#elif defined(__riscv_zicfiss)
	return 1;
#else
	return 0;
#endif
}

/* The size of the largest aligned block that begins at an address. */
ATD_FN unsigned long atd_block_at(unsigned long from)
{
	return from ? from & -from : ~(~0UL >> 1);
}

/* A page has been refused: do the addresses end there?  Then the page halfway to the next block is
 * refused as well.  They end at a multiple of at least 32 GiB (32 bits: 16 MiB). */
ATD_FN int atd_is_the_end(unsigned long from)
{
	const unsigned long block = from & -from;

	return block >> (sizeof(long) == 8 ? 35 : 24) &&
		atd_munmap(from + (block >> 1), atd_shared.page) == -EINVAL;
}

/* A step has led from a page that was refused to one that is not, or to the end: unmaps what it can
 * in between, by halves. */
ATD_FN void atd_go_back(unsigned long refused, unsigned long next)
{
	unsigned long middle;

	while (next - refused > atd_shared.page) {
		middle = refused + ((next - refused) >> 1 & -atd_shared.page);
		if (atd_munmap(middle, next - middle) == 0)
			next = middle;
		else
			refused = middle;
	}
}

/*
 * Unmaps what it can between two addresses, at best all at once.  The kernel refuses a whole block
 * if a page in it is sealed (mseal, Linux 6.10: EPERM), if an end of the block cuts what cannot be
 * split, such as a huge page, the vdso or a perf buffer (EINVAL), or if it reaches beyond the last
 * address (EINVAL).  So the walk halves a block that is refused, and steps over a single page that
 * is refused.  After every 4096 such pages the step doubles.  Steps and blocks are aligned to their
 * size, so no step leads past the end of a huge page.
 *
 *	from                     sealed                                       to
 *	|........................######.......................................|
 *	 no-------------------------------------------------------------------   all
 *	 yes-----------  no-----------                                           halves
 *	                 yes---  no y no                                         halves again
 *	                               > > > > > >                               steps
 *	                                          yes------------------------    all the rest
 */
ATD_FN void atd_unmap(unsigned long from, unsigned long to)
{
	const unsigned long page = atd_shared.page;
	unsigned long size = to - from, step = page, last = from, refused = 0, next;
	long ret;

	for (;;) {
		ret = from == to ? 0 : atd_munmap(from, size);
		if (ret == 0) {
			atd_go_back(last, from);
			if (from == to)
				return;
			atd_set_timer(ATD_PATIENCE);
			from += size;
			last = from;
			step = page;
			refused = 0;
		} else if (size > page) {
			for (next = atd_block_at(from); next >= size; next >>= 1)
				;
			size = next;
			continue;
		} else {
			if (ret == -EINVAL && to == ATD_TOP && atd_is_the_end(from))
				return;
			if ((++refused & 4095) == 0) {
				atd_set_timer(ATD_PATIENCE);
				step *= 2;
			}
			last = from;
			from = (from & -step) + step;
			if (from - 1 > to - 1)		/* beyond to, which may be 0, the top */
				from = to;
		}
		size = to - from;
	}
}

/* The lowest area that reaches beyond from; or end. */
ATD_NOINLINE const struct atd_area *atd_lowest(unsigned long from, const struct atd_area *end)
{
	const struct atd_area *a, *lowest = end;

	for (a = atd_shared.area; a < end; a++)
		if (a->to > from && (lowest == end || a->from < lowest->from))
			lowest = a;
	return lowest;
}

/* Unmaps everything but the RAM and the image.  Returns 0 without that if there is a shadow stack,
 * or if a filter refuses munmap even where nothing is mapped. */
ATD_FN int atd_release(void)
{
	const struct atd_area *const end = &atd_shared.area[ATD_RANGES + 1], *a;
	unsigned long from = 0;

	if (atd_shadow_stack() || atd_munmap(0, atd_shared.page) != 0)
		return 0;
	atd_set_timer(ATD_PATIENCE);
	for (;; from = a->to) {
		a = atd_lowest(from, end);
		atd_unmap(from, a == end ? ATD_TOP : a->from > from ? a->from : from);
		if (a == end)
			return 1;
	}
}

ATD_NOINLINE void atd_drop(unsigned long from, unsigned long to)
{
	if (from < to && atd_madvise(from, to - from, ATD_MADV_DONTNEED) == -EINVAL)
		/* mlocked: since Linux 5.18 */
		atd_madvise(from, to - from, ATD_MADV_DONTNEED_LOCKED);
}

/*
 * The list of work.  All threads take the kept descriptors but the first and the last, in the order
 * given.  Then the first thread frees the RAM range by range, each from below, in calls that are as
 * long as can be: under a CPU quota, Linux 6.18 stops a task that returns from the kernel until the
 * time that it has used is paid for.  (If there are others, at most 1 GiB a call: khugepaged waits
 * for mmap_lock and stops the rest meanwhile.)  The others take parts of what is left from the other
 * end.  A call of the first thread may cover such a part: it finds it free, or frees it.
 *
 * A part begins and ends at a multiple of 32 MiB, so that no huge page is split.  MADV_DONTNEED holds
 * mmap_lock for reading, so the threads do not exclude each other, as in munmap or exit.
 */
ATD_FN void atd_work(int first)
{
	const struct atd_area *const image = &atd_shared.area[ATD_RANGES];
	const unsigned long most = atd_shared.ready ? 1UL << 30 : ~0UL;
	unsigned long low, from, to;
	struct atd_area *a;
	int i, share = 0;

	while ((i = __atomic_add_fetch(&atd_shared.taken, 1, __ATOMIC_RELAXED)) <
	       atd_shared.kept.n - 1) {
		atd_set_timer(ATD_PATIENCE);
		atd_call(__NR_close, atd_shared.kept.fd[i]);
	}

	while (!first && 1 << share < 2 * (atd_shared.ready + 1))
		share++;
	for (i = 0; i < ATD_RANGES; i++) {
		a = &atd_shared.area[first ? i : ATD_RANGES - 1 - i];
		while ((to = __atomic_load_n(&a->to, __ATOMIC_RELAXED)) >
		       (low = from = __atomic_load_n(&a->from, __ATOMIC_RELAXED))) {
			if (first)
				to = to - from > most ? (from + most) & -(1UL << 25) : to;
			else {
				from = (to - ((to - low) >> share)) & -(1UL << 25);
				from = from > low ? from : low;
				if (!__atomic_compare_exchange_n(&a->to, &to, from, 0,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
					continue;
			}
			atd_set_timer(ATD_PATIENCE);
			/* A range may have the image in its midst. */
			atd_drop(from, to < image->from ? to : image->from);
			atd_drop(from > image->to ? from : image->to, to);
			if (first)
				__atomic_store_n(&a->from, to, __ATOMIC_RELAXED);
		}
	}
}

static void atd_worker(void)
{
	const long ret = atd_install_filter();

	if (ret == 0) {
		__atomic_add_fetch(&atd_shared.ready, 1, __ATOMIC_RELEASE);
		if (atd_await(atd_shared.pipe[0]) == 0)
			atd_work(0);
		__atomic_add_fetch(&atd_shared.done, 1, __ATOMIC_RELEASE);
	} else
		__atomic_store_n(&atd_shared.progress, (int)ret, __ATOMIC_RELEASE);
	for (;;)
		atd_call(__NR_exit, 0);
}

/* The VMM is gone: release first what others may be waiting for, then the rest. */
ATD_FN void atd_let_go(void)
{
	long slept = 0;
	int i;

	/* Another process on this memory would crash, such as a vfork child that has not called
	 * execve yet.  Only a helper of one thread can ask whether there is one. */
	if (!atd_has_work() || (atd_shared.timer == -1 && !atd_prepare()) || !atd_survey() ||
	    (atd_shared.ready == 0 && atd_wait_alone() == -EINVAL))
		return;
	if (!atd_release())
		atd_shared.kept.n = 0;	/* then none may close before the exit */
	if (atd_shared.kept.n > 1)	/* the first sign */
		atd_call(__NR_close, atd_shared.kept.fd[0]);
	if (atd_shared.ready > 0)
		atd_call(__NR_close, atd_shared.pipe[1]);
	atd_work(1);
	while (__atomic_load_n(&atd_shared.done, __ATOMIC_ACQUIRE) < atd_shared.ready &&
	       atd_sleep_on(&slept, 60 * ATD_S) > 0)
		;
	/* Unmap the RAM as well: a shared file's pages go with its last mapping, and if exit unmaps,
	 * the kernel lets go of the file only after the last kept descriptor, the sign, has closed. */
	for (i = 0; i < ATD_RANGES; i++)
		atd_shared.area[i].to = 0;
	atd_release();
}

static void atd_main(void)
{
	const int vmm = atd_shared.vmm;
	const long ret = atd_set_up(vmm);

	__atomic_store_n(&atd_shared.progress, (int)ret, __ATOMIC_RELEASE);
	if (ret == ATD_READY) {
		atd_outlive(vmm);
		atd_let_go();
	}
	atd_call(__NR_exit_group, 0);	/* closes the last kept descriptor */
	__builtin_trap();	/* a filter of the VMM's refuses exit_group */
}

/*
 * The system calls, by architecture.  Each block has atd_syscall and atd_clone, and begins with:
 * the instruction; where the number, the arguments and the result are; what else the kernel
 * overwrites.  Sources: syscall(2), and the kernel's entry code and Documentation/arch.
 * Floating-point and vector registers survive where nothing else is said.  An unused argument is
 * not read by the kernel, neither are those of clone that belong to flags that are not set.
 */
#if ATD_EM == 62	/* x86-64 */

/* syscall; rax; rdi rsi rdx r10 r8; rax; rcx r11 */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;

	__asm__ volatile("syscall"
		: "+a"(nr)
		: "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
		: "rcx", "r11", "cc", "memory");
	return nr;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register void (*fn)(void) __asm__("r9") = entry;
	register long r10 __asm__("r10") = tid;
	long ret = __NR_clone;

	__asm__ volatile("syscall; test{q %%rax, %%rax| rax, rax}; jnz 1f; call {*}%[fn]; 1:"
		: "+a"(ret)
		: "D"(flags), "S"(stack), "r"(r10), [fn] "r"(fn)
		: "rcx", "r11", "cc", "memory");
	return ret;
}

#elif ATD_EM == 3	/* i386 */

/* int $0x80; eax; ebx ecx edx esi edi; eax; none */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	__asm__ volatile("int {$0x80|0x80}"
		: "+a"(nr)
		: "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
		: "cc", "memory");
	return nr;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	long ret = __NR_clone;

	__asm__ volatile("int {$0x80|0x80}; test{l %%eax, %%eax| eax, eax}; jnz 1f; call {*}%[fn]; 1:"
		: "+a"(ret)
		: "b"(flags), "c"(stack), [fn] "S"(entry), "D"(tid)
		: "cc", "memory");
	return ret;
}

#elif ATD_EM == 183	/* aarch64 */

/* svc #0; x8; x0 x1 x2 x3 x4; x0; of SVE p0-p15 ffr, and z0-z31 but for their low 128 bits
 * (sve.rst).  A clobber can only name all of z0-z31.  No compiler keeps anything in ffr, and clang
 * does not know it. */
#ifdef __ARM_FEATURE_SVE
#define ATD_VECTORS , \
	"z0", "z1", "z2", "z3", "z4", "z5", "z6", "z7", \
	"z8", "z9", "z10", "z11", "z12", "z13", "z14", "z15", \
	"z16", "z17", "z18", "z19", "z20", "z21", "z22", "z23", \
	"z24", "z25", "z26", "z27", "z28", "z29", "z30", "z31", \
	"p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", \
	"p8", "p9", "p10", "p11", "p12", "p13", "p14", "p15"
#else
#define ATD_VECTORS
#endif
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = nr, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;

	__asm__ volatile("svc #0"
		: "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
		: "cc", "memory" ATD_VECTORS);
	return x0;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long x8 __asm__("x8") = __NR_clone, x0 __asm__("x0") = flags;
	register void *x1 __asm__("x1") = stack;
	register long x4 __asm__("x4") = tid;
	register void (*fn)(void) __asm__("x9") = entry;

	__asm__ volatile("svc #0; cbnz x0, 1f; blr %[fn]; 1:"
		: "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x4), [fn] "r"(fn)
		: "cc", "memory" ATD_VECTORS);
	return x0;
}

#elif ATD_EM == 40	/* arm */

/* svc #0; r7; r0 r1 r2 r3 r4; r0; none.  Thumb code may use r7 as its frame pointer and then no
 * operand can have it, so it is kept in ip meanwhile. */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long r0 __asm__("r0") = a, r1 __asm__("r1") = b, r2 __asm__("r2") = c;
	register long r3 __asm__("r3") = d, r4 __asm__("r4") = e;

	__asm__ volatile("mov ip, r7; mov r7, %[nr]; svc #0; mov r7, ip"
		: "+r"(r0)
		: [nr] "r"(nr), "r"(r1), "r"(r2), "r"(r3), "r"(r4)
		: "ip", "cc", "memory");
	return r0;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long r0 __asm__("r0") = flags;
	register void *r1 __asm__("r1") = stack;
	register long nr __asm__("r2") = __NR_clone;
	register void (*fn)(void) __asm__("r3") = entry;
	register long r4 __asm__("r4") = tid;

	__asm__ volatile("mov ip, r7; mov r7, %[nr]; svc #0; mov r7, ip; cmp r0, #0; bne 1f; blx %[fn]; 1:"
		: "+r"(r0)
		: [nr] "r"(nr), "r"(r1), "r"(r4), [fn] "r"(fn)
		: "ip", "cc", "memory");
	return r0;
}

#elif ATD_EM == 243	/* riscv64 */

/* ecall; a7; a0 a1 a2 a3 a4; a0; of V v0-v31 vl vtype (vector.rst).  gcc 12 knows no such names,
 * but makes no use of V either.  clang 17 does not know the last two, but takes every asm to
 * overwrite them. */
#define ATD_V0_V31 \
	"v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", \
	"v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", \
	"v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", \
	"v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"
#if !defined(__riscv_vector) || (!defined(__clang__) && __GNUC__ < 13)
#define ATD_VECTORS
#elif defined(__clang__) && __clang_major__ < 18
#define ATD_VECTORS , ATD_V0_V31
#else
#define ATD_VECTORS , ATD_V0_V31, "vl", "vtype"
#endif
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long a7 __asm__("a7") = nr, a0 __asm__("a0") = a, a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c, a3 __asm__("a3") = d, a4 __asm__("a4") = e;

	__asm__ volatile("ecall"
		: "+r"(a0)
		: "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4)
		: "memory" ATD_VECTORS);
	return a0;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long a7 __asm__("a7") = __NR_clone, a0 __asm__("a0") = flags;
	register void *a1 __asm__("a1") = stack;
	register long a4 __asm__("a4") = tid;
	register void (*fn)(void) __asm__("a5") = entry;

	__asm__ volatile("ecall; bnez a0, 1f; jalr %[fn]; 1:"
		: "+r"(a0)
		: "r"(a7), "r"(a1), "r"(a4), [fn] "r"(fn)
		: "memory" ATD_VECTORS);
	return a0;
}

#elif ATD_EM == 22	/* s390x */

/* svc 0; r1; r2 r3 r4 r5 r6; r2; none.  clone has its first two arguments the other way round here:
 * stack, flags. */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long r1 __asm__("r1") = nr, r2 __asm__("r2") = a, r3 __asm__("r3") = b;
	register long r4 __asm__("r4") = c, r5 __asm__("r5") = d, r6 __asm__("r6") = e;

	__asm__ volatile("svc 0"
		: "+d"(r2)
		: "d"(r1), "d"(r3), "d"(r4), "d"(r5), "d"(r6)
		: "cc", "memory");
	return r2;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long r1 __asm__("r1") = __NR_clone, r2 __asm__("r2") = (long)stack;
	register long r3 __asm__("r3") = flags, r5 __asm__("r5") = tid;
	register void (*fn)(void) __asm__("r7") = entry;

	__asm__ volatile("svc 0; ltgr %%r2, %%r2; jnz 1f; basr %%r14, %[fn]; 1:"
		: "+d"(r2)
		: "d"(r1), "d"(r3), "d"(r5), [fn] "d"(fn)
		: "cc", "memory");
	return r2;
}

#elif ATD_EM == 21	/* ppc64le */

/* sc; r0; r3 r4 r5 r6 r7; r3, a positive errno if cr0.SO is set; r4-r12 ctr cr0 xer.  A function is
 * entered with its address in r12 (ELFv2 ABI). */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long r0 __asm__("r0") = nr, r3 __asm__("r3") = a, r4 __asm__("r4") = b;
	register long r5 __asm__("r5") = c, r6 __asm__("r6") = d, r7 __asm__("r7") = e;

	__asm__ volatile("sc; bns+ 1f; neg 3, 3; 1:"
		: "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6), "+r"(r7)
		:
		: "r8", "r9", "r10", "r11", "r12", "ctr", "cr0", "xer", "memory");
	return r3;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long r0 __asm__("r0") = __NR_clone, r3 __asm__("r3") = flags;
	register void *r4 __asm__("r4") = stack;
	register long r7 __asm__("r7") = tid;
	register void (*fn)(void) __asm__("r14") = entry;

	__asm__ volatile("sc; bns+ 1f; neg 3, 3; 1:; cmpdi 3, 0; bne 2f; mr 12, %[fn]; mtctr 12; bctrl; 2:"
		: "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r7)
		: [fn] "r"(fn)
		: "r5", "r6", "r8", "r9", "r10", "r11", "r12", "ctr",
		  "cr0", "xer", "memory");
	return r3;
}

#elif ATD_EM == 258	/* loongarch64 */

/* syscall 0; a7; a0 a1 a2 a3 a4; a0; t0-t8 */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long a7 __asm__("$a7") = nr, a0 __asm__("$a0") = a, a1 __asm__("$a1") = b;
	register long a2 __asm__("$a2") = c, a3 __asm__("$a3") = d, a4 __asm__("$a4") = e;

	__asm__ volatile("syscall 0"
		: "+r"(a0)
		: "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4)
		: "$t0", "$t1", "$t2", "$t3", "$t4", "$t5", "$t6", "$t7", "$t8",
		  "memory");
	return a0;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long a7 __asm__("$a7") = __NR_clone, a0 __asm__("$a0") = flags;
	register void *a1 __asm__("$a1") = stack;
	register long a3 __asm__("$a3") = tid;
	register void (*fn)(void) __asm__("$a5") = entry;

	__asm__ volatile("syscall 0; bnez $a0, 1f; jirl $ra, %[fn], 0; 1:"
		: "+r"(a0)
		: "r"(a7), "r"(a1), "r"(a3), [fn] "r"(fn)
		: "$t0", "$t1", "$t2", "$t3", "$t4", "$t5", "$t6", "$t7", "$t8",
		  "memory");
	return a0;
}

#elif ATD_EM == 8	/* mips64 */

/* syscall; $2; $4 $5 $6 $7 $8; $2, a positive errno if $7 is set; $1 $3 $8-$15 $24 $25 hi lo, and
 * $7.  A function is entered with its address in $25. */
ATD_FN long atd_syscall(long nr, long a, long b, long c, long d, long e)
{
	register long v0 __asm__("$2") = nr, a0 __asm__("$4") = a, a1 __asm__("$5") = b;
	register long a2 __asm__("$6") = c, a3 __asm__("$7") = d, a4 __asm__("$8") = e;

	__asm__ volatile("syscall"
		: "+r"(v0), "+r"(a3), "+r"(a4)
		: "r"(a0), "r"(a1), "r"(a2)
		: "$1", "$3", "$10", "$11", "$12", "$13", "$14", "$15", "$24",
		  "$25", "hi", "lo", "memory");
	return a3 ? -v0 : v0;
}
ATD_FN long atd_clone(long flags, void *stack, void (*entry)(void), long tid)
{
	register long v0 __asm__("$2") = __NR_clone, a0 __asm__("$4") = flags;
	register void *a1 __asm__("$5") = stack;
	register long a3 __asm__("$7"), a4 __asm__("$8") = tid;
	register void (*fn)(void) __asm__("$16") = entry;

	__asm__ volatile("syscall; bnez $2, 1f; move $25, %[fn]; jalr $25; 1:"
		: "+r"(v0), "=r"(a3), "+r"(a4)
		: "r"(a0), "r"(a1), [fn] "r"(fn)
		: "$1", "$3", "$10", "$11", "$12", "$13", "$14", "$15",
		  "$24", "$25", "hi", "lo", "memory");
	return a3 ? -v0 : v0;
}
#endif

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#pragma pack(pop)
#pragma GCC diagnostic pop
#ifdef __cplusplus
}
#endif

#undef ATD_BARE
#undef ATD_BARE_MORE
#undef ATD_SPLIT
#undef ATD_FN
#undef ATD_NOINLINE
#undef ATD_OPAQUE
#undef ATD_EM
#undef ATD_V0_V31
#undef ATD_VECTORS
#undef ATD_AUDIT_ARCH
#undef ATD_ARG_LOW
#undef ATD_LOAD
#undef ATD_UNLESS
#undef ATD_KILL
#undef ATD_ALLOW
#undef ATD_MAY
#undef ATD_MAY_IF
#undef ATD_HIDDEN
#undef ATD_STACK_LESS
#undef ATD_PATIENCE
#undef ATD_TOP

#else /* not Linux */

ASYNC_TEARDOWN_API int async_teardown_start(void) { return -ENOSYS; }
ASYNC_TEARDOWN_API int async_teardown_stop(void) { return -ENOSYS; }
ASYNC_TEARDOWN_API int async_teardown_ram(void *start, unsigned long size) { (void)start; (void)size; return -ENOSYS; }
ASYNC_TEARDOWN_API int async_teardown_keep(const int *fds, int n) { (void)fds; (void)n; return -ENOSYS; }
ASYNC_TEARDOWN_API int async_teardown_threads(int n) { (void)n; return -ENOSYS; }

#endif
#endif /* ASYNC_TEARDOWN_IMPLEMENTATION */

/*
 * VERSIONS
 *
 * 1.3.0  More mistakes are reported: keep returns -EBUSY while a helper lives, and its result has
 *        to be used; ram with size 0 returns -ENOENT if there is no such range; threads returns the
 *        number; start's new error is -EOVERFLOW.  Waits last as long as they say.  Refused ppoll
 *        and SIGSYS handlers that emulate rt_sigprocmask are -EPERM.  No option of the compiler lets
 *        the helper overwrite the VMM's data.  The helper's code is locked in memory.
 * 1.2.0  async_teardown_threads; ASYNC_TEARDOWN_RANGES: 32 ranges instead of 8.  All threads close
 *        the kept descriptors, before the RAM.  start works under svirt_t and ~@privileged.
 * 1.1.0  async_teardown_ram and async_teardown_keep: devices are free first, several threads free
 *        the RAM, descriptors can be kept.
 * 1.0.0  async_teardown_start and async_teardown_stop.
 */

/*
 * This software is available under two licences.  Choose whichever you prefer.
 * SPDX-License-Identifier: MIT OR Unlicense
 * A. The Unlicense (public domain): https://unlicense.org
 * B. The MIT License.  Copyright (c) 2026 the async_teardown.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
 * associated documentation files (the "Software"), to deal in the Software without restriction,
 * including without limitation the rights to use, copy, modify, merge, publish, distribute,
 * sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
 * NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
 * NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
 * DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 */
