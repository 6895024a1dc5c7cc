/*
 * For QEMU 10.0, in place of system/async-teardown.c, with async_teardown.h in include/qemu/.
 *
 * In system/vl.c, let the option set a flag only, and call init_async_teardown()
 *   - with -daemonize, just before os_setup_post(): the helper belongs to the process that
 *     starts it, and RAM is told by then, so it has all of its threads also under -sandbox;
 *   - else before -sandbox takes effect, which forbids what start needs.
 *
 * QEMU's quit does not unmap the RAM, so an orderly exit is as fast as a SIGKILL.
 */
#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "exec/memory.h"
#include "exec/ramlist.h"
#include "qemu/async-teardown.h"

#define ASYNC_TEARDOWN_IMPLEMENTATION
#define ASYNC_TEARDOWN_STATIC
#define ASYNC_TEARDOWN_THREADS 2
#define ASYNC_TEARDOWN_RANGES 512	/* a machine may have 256 DIMMs */
#include "qemu/async_teardown.h"

static void atd_block_added(RAMBlockNotifier *n, void *host, size_t size, size_t max_size)
{
    ram_addr_t offset;
    MemoryRegion *mr = memory_region_from_host(host, &offset);
    int ret;

    /* A VFIO BAR is a RAM device.  Told as RAM, it would be let go last. */
    if (mr && memory_region_is_ram_device(mr)) {
        return;
    }
    /* Small blocks are freed with the devices, in no time. */
    if (max_size < 16 * MiB) {
        return;
    }
    ret = async_teardown_ram(host, max_size);   /* all that is mapped: a resize changes nothing */
    if (ret < 0) {
        warn_report("async-teardown: %zu bytes of RAM: %s", max_size, strerror(-ret));
    }
}

static void atd_block_removed(RAMBlockNotifier *n, void *host, size_t size, size_t max_size)
{
    async_teardown_ram(host, 0);    /* -ENOENT for one that was not told */
}

static RAMBlockNotifier atd_notifier = {
    .ram_block_added = atd_block_added,
    .ram_block_removed = atd_block_removed,
};

void init_async_teardown(void)
{
    int ret;

    ram_block_notifier_add(&atd_notifier);  /* also calls it for each block that there is */
    ret = async_teardown_start();
    if (ret < 0) {
        warn_report("no asynchronous teardown: %s", strerror(-ret));
    }
}
