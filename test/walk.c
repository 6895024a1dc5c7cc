/*
 * walk.c - the walk that unmaps all but the RAM, against a model of an address space
 *
 * A kernel shows few of the address spaces that there are: the tops of other machines, huge
 * pages of 16 GiB, a gigabyte of sealed memory.  So here a filter traps munmap, and a
 * handler answers it from a list of mappings, by the kernel's rules.  What runs is the
 * compiled atd_unmap, atd_survey and atd_release.
 *
 * When a walk is over, of what it was given
 *   - no ordinary mapping is left, but where steps have become longer: between two mappings
 *     that are refused and less than a step apart;
 *   - nothing is left that an aligned block, or one up to the end, could still unmap;
 *   - each huge page is gone that is not cut;
 * and no call has touched what is beside it.
 *
 * A new case: a layout in spaces[], with what stays of it and how many calls it may take.
 * SEED=N RUNS=1 scenarios walk_random walk_release tries again what has failed.
 */
#if defined(__x86_64__) && !defined(__ILP32__)
#define REGISTER_OF(uc, which) ((uc)->uc_mcontext.gregs[which])
enum { FIRST_ARG = REG_RDI, SECOND_ARG = REG_RSI, RESULT = REG_RAX };
#elif defined(__i386__)
#define REGISTER_OF(uc, which) ((uc)->uc_mcontext.gregs[which])
enum { FIRST_ARG = REG_EBX, SECOND_ARG = REG_ECX, RESULT = REG_EAX };
#elif defined(__aarch64__)
#define REGISTER_OF(uc, which) ((uc)->uc_mcontext.regs[which])
enum { FIRST_ARG = 0, SECOND_ARG = 1, RESULT = 0 };
#endif

#ifdef REGISTER_OF

typedef unsigned long addr;

/* A kind of mapping; or the size of its huge pages. */
enum { ORDINARY, SEALED, WHOLE /* may not be split */ };

enum { VMAS = 1024, WALK_PAGE = 4096, MOST_CALLS = 1000000 };
#define WALK_TOP (sizeof(long) == 8 ? 1UL << (8 * sizeof(long) - 8) : 0UL)

struct vma { addr from, to, kind; int id; };

static struct {
	struct vma vma[VMAS];	/* sorted */
	int n;
	addr page, top;
	int sealed_first;	/* looks for sealed ones before what is cut: 6.10, 6.11 */
	struct { addr from, last; } spare[ATD_RANGES + 2];	/* not to be touched; last is within */
	int spares, walking, astray;
	long calls, useful;	/* the number of the last that unmapped something */
} model;

static char about[128];	/* what is being tried */

static void walk_must(int holds, const char *what, int line)
{
	char text[192];

	if (holds)
		return;
	snprintf(text, sizeof(text), "%s: \"%s\"", about, what);
	broken("walk.c", line, text, NULL, NULL);
	_exit(99);
}
#define WALK_MUST(c, what) walk_must(!!(c), what, __LINE__)

static int cuts(const struct vma *v, addr at)
{
	return v->from < at && at < v->to && (v->kind == WHOLE || (v->kind > WHOLE && at % v->kind));
}

/* The first that ends beyond. */
static int find_vma(addr from)
{
	int low = 0, high = model.n, middle;

	while (low < high) {
		middle = (low + high) / 2;
		if (model.vma[middle].to > from)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* What the kernel says; all or nothing. */
static long try_munmap(addr from, addr size)
{
	const addr to = from + size;
	int first, i;

	if (from % model.page || size % model.page || !size || from > model.top || size > model.top - from)
		return -EINVAL;
	first = find_vma(from);
	for (i = first; model.sealed_first && i < model.n && model.vma[i].from < to; i++)
		if (model.vma[i].kind == SEALED)
			return -EPERM;
	for (i = first; i < model.n && model.vma[i].from < to; i++) {
		if (model.vma[i].kind == SEALED)
			return -EPERM;
		if (cuts(&model.vma[i], from) || cuts(&model.vma[i], to))
			return -EINVAL;
	}
	return 0;
}

static void replace(int at, int n, const struct vma *by, int n_by)
{
	MUST(model.n - n + n_by <= VMAS);
	memmove(&model.vma[at + n_by], &model.vma[at + n], (size_t)(model.n - at - n) * sizeof(*by));
	memcpy(&model.vma[at], by, (size_t)n_by * sizeof(*by));
	model.n += n_by - n;
}

static int place(addr from, addr size, addr kind)
{
	const struct vma v = { from, from + size, kind, model.n };
	const int at = find_vma(from);

	if (!size || from >= model.top || size > model.top - from || (at < model.n && model.vma[at].from < v.to))
		return 0;
	replace(at, 0, &v, 1);
	return 1;
}

static long model_munmap(addr from, addr size)
{
	const long ret = try_munmap(from, size);
	const addr to = from + size;
	const int first = find_vma(from);
	struct vma rest[2];
	int i, rests = 0;

	if (ret != 0)
		return ret;
	for (i = first; i < model.n && model.vma[i].from < to; i++) {
		if (model.vma[i].from < from) {
			rest[rests] = model.vma[i];
			rest[rests++].to = from;
		}
		if (model.vma[i].to > to) {
			rest[rests] = model.vma[i];
			rest[rests++].from = to;
		}
	}
	if (i > first)
		model.useful = model.calls;
	replace(first, i - first, rest, rests);
	return 0;
}

static void answer_munmap(int sig, siginfo_t *info, void *context)
{
	ucontext_t *const uc = context;
	const addr from = (addr)REGISTER_OF(uc, FIRST_ARG), size = (addr)REGISTER_OF(uc, SECOND_ARG);
	int i;

	(void)sig;
	(void)info;
	WALK_MUST(++model.calls < MOST_CALLS, "the walk has no end");
	model.astray |= !model.walking;
	for (i = 0; i < model.spares; i++)
		model.astray |= from <= model.spare[i].last && from + size - 1 >= model.spare[i].from;
	REGISTER_OF(uc, RESULT) = model_munmap(from, size);
}

/* From here on this process has no munmap. */
static void model_instead_of_kernel(void)
{
	on_sigsys(answer_munmap);
	filter_one(__NR_munmap, TRAP);
	filter_one(__NR_timer_settime, ERRNO | 0);
	atd_shared.timer = 0;
}

static void begin_layout(addr page, addr top)
{
	memset(&model, 0, sizeof(model));
	model.page = atd_shared.page = page;
	model.top = top;
}

/* last is part of it, because the end may be 2 to the 32nd. */
static void spare(addr from, addr last)
{
	model.spare[model.spares].from = from;
	model.spare[model.spares++].last = last;
}

static void unmap(addr from, addr to)
{
	model.spares = 0;
	if (from)
		spare(0, from - 1);
	if (to)
		spare(to, ~0UL);
	model.calls = model.useful = 0;
	model.walking = 1;
	atd_unmap(from, to);
	model.walking = 0;
}

/* How long a step may be, in pages, behind so many that are refused. */
static addr longest_step(addr pages)
{
	addr step = 1;

	/* One that has just doubled may begin with half of it, to be aligned. */
	while (step * 2 <= (pages + pages / 4096 + 4096) / 4096)
		step *= 2;
	return step;
}

static int ilog(addr n)
{
	return n > 1 ? 1 + ilog(n / 2) : 0;
}

/* Could a block still unmap this one, whole? */
static int left_out(const struct vma *v, addr from, addr last, addr step)
{
	addr size, at;

	for (size = step; size; size *= 2) {
		at = v->from & -size;
		if (at >= from && at + size - 1 <= last && at + size - 1 >= v->to - 1 && try_munmap(at, size) == 0)
			return 1;
	}
	return step == model.page && try_munmap(v->from, last - v->from + 1) == 0;
}

/* Sees that nothing is left between the two but what has to be, and adds up how many calls
 * this may have taken. */
static void judge_gap(addr from, addr last, long *calls)
{
	const struct vma *v = &model.vma[find_vma(from)], *const end = &model.vma[model.n], *above;
	const long levels = 8 * ilog((WALK_TOP - 1) / model.page);
	addr step = model.page, run = 0, below = 0, at, pages, each;

	*calls += levels;
	for (; v < end && v->from <= last; v++) {
		if (v->kind == ORDINARY) {
			for (above = v; above < end && above->from <= last && above->kind == ORDINARY; above++)
				;
			WALK_MUST(below, "an ordinary mapping is left below what is refused");
			WALK_MUST(above < end && above->from <= last, "an ordinary mapping is left above what is refused");
			WALK_MUST(above->from - below < step, "an ordinary mapping is left where a step leads");
			continue;
		}
		at = v->from < from ? from : v->from;
		if (!below || at - below >= step) {
			run = at;
			step = model.page;
		}
		below = v->to - 1 > last ? last + 1 : v->to;
		if (v->kind == WHOLE && v->from >= from && v->to - 1 <= last)
			WALK_MUST(!left_out(v, from, last, step), "something is left that a block covers");
		if (v->kind > WHOLE && step <= v->kind)
			WALK_MUST(((at + v->kind - 1) & -v->kind) + (v->kind - 1) > below - 1, "a huge page is left that is not cut");
		pages = (below - at) / model.page;
		step = longest_step((below - run) / model.page);
		*calls += levels;
		for (each = 1; each <= step && pages; each *= 2) {
			*calls += (long)((pages < 4096 * each ? pages : 4096 * each) / each) * (ilog(each) + 4);
			pages -= pages < 4096 * each ? pages : 4096 * each;
		}
		step *= model.page;
	}
}

struct mapping {
	addr from, size, kind;
	addr stays;	/* so many bytes of it, at one end of what is walked */
};

struct layout {
	const char *name;
	addr page, top, from, to;
	long calls;	/* so many at most */
	struct mapping mapping[12];
};

#define KB(n) ((addr)(n) << 10)
#define MB(n) ((addr)(n) << 20)
#define GB(n) ((addr)(n) << 30)

static const struct layout spaces[] = {
#if __SIZEOF_LONG__ == 8
	{ "nothing", KB(4), (1UL << 47) - KB(4), 0, WALK_TOP, 160, { { 0, 0, 0, 0 } } },
	{ "a program below its RAM", KB(4), (1UL << 47) - KB(4), 0x55555555d000, 0x7ffdf7a00000, 1, {
		{ 0x55555557e000, KB(132), ORDINARY, 0 },
		{ 0x7ffdf5000000, MB(8), ORDINARY, 0 },
		{ 0x7ffdf5800000, KB(516), WHOLE, 0 },
		{ 0x7ffdf79ff000, KB(4), ORDINARY, 0 } } },
	{ "libraries, vdso and stack above RAM", KB(4), (1UL << 47) - KB(4), 0x7ffff7a00000, WALK_TOP, 150, {
		{ 0x7ffff7a00000, MB(2), ORDINARY, 0 },
		{ 0x7ffff7fb7000, KB(12), ORDINARY, 0 },
		{ 0x7ffff7fbd000, KB(16), WHOLE, 0 },
		{ 0x7ffff7fc1000, KB(8), WHOLE, 0 },
		{ 0x7ffff7fc3000, KB(228), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "a vdso at the end of RAM, a device behind", KB(4), (1UL << 47) - KB(4), 0x7ffff7a01000, WALK_TOP, 150, {
		{ 0x7ffff7a01000, KB(16), WHOLE, KB(16) },
		{ 0x7ffff7a05000, KB(8), WHOLE, KB(8) },
		{ 0x7ffff7a07000, KB(12), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "a vdso across a multiple of 64 GiB", KB(4), (1UL << 47) - KB(4), 0x555555559000, WALK_TOP, 400, {
		{ 0x7f8fffff0000, KB(56), ORDINARY, 0 },
		{ 0x7f8fffffe000, KB(16), WHOLE, KB(16) },
		{ 0x7f9000002000, KB(4), ORDINARY, 0 },
		{ 0x7f9000003000, KB(4), SEALED, KB(4) },
		{ 0x7f9000100000, MB(1), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "a vdso across the last multiple of 32 GiB", KB(4), (1UL << 47) - KB(4), 0x555555559000, WALK_TOP, 400, {
		{ 0x7ff7ffff0000, KB(56), ORDINARY, 0 },
		{ 0x7ff7ffffe000, KB(16), WHOLE, KB(16) },
		{ 0x7ff800002000, KB(4), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "perf buffers between devices", KB(4), (1UL << 47) - KB(4), 0x7ffff7000000, WALK_TOP, 150, {
		{ 0x7ffff7001000, KB(4), ORDINARY, 0 },
		{ 0x7ffff7002000, KB(36), WHOLE, 0 },
		{ 0x7ffff700b000, KB(4), ORDINARY, 0 },
		{ 0x7ffff700c000, KB(516), WHOLE, 0 },
		{ 0x7ffff708d000, KB(8), ORDINARY, 0 },
		{ 0x7ffff708f000, KB(2052), WHOLE, 0 },
		{ 0x7ffff7290000, KB(4), ORDINARY, 0 } } },
	{ "perf buffers and devices between sealed pages", KB(4), (1UL << 47) - KB(4), 0x7ffff7000000, WALK_TOP, 3000, {
		{ 0x7ffff7000000, KB(4), SEALED, KB(4) },
		{ 0x7ffff7001000, KB(4), ORDINARY, 0 },
		{ 0x7ffff7002000, KB(36), WHOLE, KB(36) },
		{ 0x7ffff700b000, KB(4), ORDINARY, 0 },
		{ 0x7ffff700c000, KB(4), SEALED, KB(4) },
		{ 0x7ffff700d000, KB(516), WHOLE, KB(516) },
		{ 0x7ffff708e000, KB(4), ORDINARY, 0 },
		{ 0x7ffff708f000, KB(2052), WHOLE, KB(2052) },
		{ 0x7ffff7290000, KB(4), ORDINARY, 0 },
		{ 0x7ffff7291000, KB(4), SEALED, KB(4) } } },
	{ "64 MiB sealed, a device behind", KB(4), (1UL << 47) - KB(4), 0x7fff00000000, WALK_TOP, 40000, {
		{ 0x7fff00003000, MB(64), SEALED, MB(64) },
		{ 0x7fff04003000, KB(4), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "1 GiB sealed, a device behind", KB(4), (1UL << 47) - KB(4), 0x7fff00000000, WALK_TOP, 150000, {
		{ 0x7fff00003000, GB(1), SEALED, GB(1) },
		{ 0x7fff40003000, KB(4), ORDINARY, 0 },
		{ 0x7ffffffde000, KB(132), ORDINARY, 0 } } },
	{ "a device between 1 GiB sealed and more", KB(16), 1UL << 47, 0x7fff00000000, WALK_TOP, 90000, {
		{ 0x7fff0000c000, GB(1), SEALED, GB(1) },
		{ 0x7fff4000c000, KB(256), ORDINARY, 0 },
		{ 0x7fff4004c000, MB(1), SEALED, MB(1) },
		{ 0x7fff4014c000, KB(16), ORDINARY, 0 } } },
	{ "devices between sealed pages, behind two long runs", KB(4), (1UL << 47) - KB(4), 0x7fff00000000, WALK_TOP, 40000, {
		{ 0x7fff00000000, KB(4 * 6000), SEALED, KB(4 * 6000) },
		{ 0x7fff01770000, KB(8), ORDINARY, 0 },
		{ 0x7fff01772000, KB(4 * 3501), SEALED, KB(4 * 3501) },
		{ 0x7fff0251f000, KB(4), ORDINARY, 0 },
		{ 0x7fff02520000, KB(4), SEALED, KB(4) },
		{ 0x7fff02521000, KB(4), ORDINARY, 0 },
		{ 0x7fff02522000, KB(4), SEALED, KB(4) },
		{ 0x7fff02523000, KB(4), ORDINARY, 0 } } },
	{ "all sealed", KB(64), 1UL << 47, 0x7fffc0000000, WALK_TOP, 40000, {
		{ 0x7fffc0000000, GB(1), SEALED, GB(1) } } },
	{ "2 MiB pages, one cut", KB(4), (1UL << 47) - KB(4), 0x7fff00123000, WALK_TOP, 2000, {
		{ 0x7ffe00000000, GB(4) + MB(8), MB(2), KB(884) },
		{ 0x7fff00800000, KB(4), ORDINARY, 0 } } },
	{ "1 GiB pages, one cut", KB(4), (1UL << 47) - KB(4), 0x7fff30001000, WALK_TOP, 80000, {
		{ 0x7ffe00000000, GB(6), GB(1), MB(256) - KB(4) },
		{ 0x7fff80000000, KB(4), ORDINARY, 0 } } },
	{ "512 MiB pages, one cut by RAM above", KB(64), 1UL << 48, 0xaaaaaaab0000, 0xffff7fff0000, 30000, {
		{ 0xfffefffe0000, KB(128), ORDINARY, 0 },
		{ 0xffff00000000, GB(3), MB(512), MB(512) - KB(64) } } },
	{ "16 GiB pages, one cut", KB(64), 1UL << 47, 0x7003c0010000, WALK_TOP, 40000, {
		{ 0x6ffc00000000, GB(64), GB(16), GB(1) - KB(64) },
		{ 0x700c00000000, KB(64), ORDINARY, 0 },
		{ 0x7fffffff0000, KB(64), ORDINARY, 0 } } },
	{ "the middle of mappings", KB(4), (1UL << 47) - KB(4), 0x7ffff7003000, 0x7ffff7203000, 1, {
		{ 0x7ffff7000000, KB(64), ORDINARY, 0 },
		{ 0x7ffff7020000, KB(16), WHOLE, 0 },
		{ 0x7ffff7200000, KB(64), ORDINARY, 0 } } },
	{ "the middle of what may not be split", KB(4), (1UL << 47) - KB(4), 0x7ffff7003000, 0x7ffff7203000, 150, {
		{ 0x7ffff7000000, KB(36), WHOLE, KB(24) },
		{ 0x7ffff7009000, KB(4), ORDINARY, 0 },
		{ 0x7ffff71ff000, KB(4), ORDINARY, 0 },
		{ 0x7ffff7200000, KB(36), WHOLE, KB(12) } } },
	{ "the middle of what is sealed", KB(16), 1UL << 48, 0xfffff7004000, 0xfffff7204000, 150, {
		{ 0xfffff7000000, KB(32), SEALED, KB(16) },
		{ 0xfffff7008000, KB(16), ORDINARY, 0 },
		{ 0xfffff71fc000, KB(16), ORDINARY, 0 },
		{ 0xfffff7200000, KB(32), SEALED, KB(16) } } },
	/* tops of addresses */
	{ "x86-64, five levels", KB(4), (1UL << 56) - KB(4), 0x555555559000, WALK_TOP, 150, {
		{ (1UL << 47) - KB(136), KB(132), ORDINARY, 0 },
		{ (1UL << 56) - KB(136), KB(132), ORDINARY, 0 } } },
	{ "arm64, 48 bits", KB(4), 1UL << 48, 0xaaaaaaaa0000, WALK_TOP, 150, {
		{ (1UL << 48) - KB(132), KB(132), ORDINARY, 0 } } },
	{ "arm64, 52 bits", KB(64), 1UL << 52, 0xaaaaaaaa0000, WALK_TOP, 150, {
		{ (1UL << 52) - KB(128), KB(128), ORDINARY, 0 } } },
	{ "arm64, 39 bits", KB(4), 1UL << 39, 0x5555560000, WALK_TOP, 150, {
		{ (1UL << 39) - KB(132), KB(132), ORDINARY, 0 } } },
	{ "riscv, 38 bits", KB(4), 1UL << 38, 0x2aaaaac000, WALK_TOP, 150, {
		{ (1UL << 38) - KB(132), KB(132), ORDINARY, 0 } } },
	{ "s390x, 42 bits", KB(4), 1UL << 42, 0x2aa00004000, WALK_TOP, 150, {
		{ (1UL << 42) - KB(132), KB(132), ORDINARY, 0 } } },
	{ "s390x, 53 bits", KB(4), 1UL << 53, 0x2aa00004000, WALK_TOP, 150, {
		{ (1UL << 53) - KB(132), KB(132), ORDINARY, 0 } } },
	{ "ppc64le, 47 bits", KB(64), 1UL << 47, 0x100020000, WALK_TOP, 150, {
		{ (1UL << 47) - KB(192), KB(192), ORDINARY, 0 } } },
#else
	{ "nothing", KB(4), 0xc0000000, 0x8048000, WALK_TOP, 100, { { 0, 0, 0, 0 } } },
	{ "3 GiB", KB(4), 0xc0000000, 0x8050000, WALK_TOP, 150, {
		{ 0xb7d00000, MB(2), ORDINARY, 0 },
		{ 0xb7ffa000, KB(16), WHOLE, 0 },
		{ 0xb7ffe000, KB(8), WHOLE, 0 },
		{ 0xbffdf000, KB(132), ORDINARY, 0 } } },
	{ "3 GiB, a vdso across a multiple of 64 MiB", KB(4), 0xc0000000, 0x8050000, WALK_TOP, 150, {
		{ 0xb3ffe000, KB(16), WHOLE, 0 },
		{ 0xb4002000, KB(4), ORDINARY, 0 },
		{ 0xbffdf000, KB(132), ORDINARY, 0 } } },
	{ "arm, 16 MiB less", KB(4), 0xbf000000, 0x20000, WALK_TOP, 150, {
		{ 0xb6ff0000, KB(4), WHOLE, 0 },
		{ 0xbefdf000, KB(132), ORDINARY, 0 } } },
	{ "all but a page", KB(4), 0xfffff000, 0x8050000, WALK_TOP, 150, {
		{ 0xf7fd0000, KB(16), WHOLE, 0 },
		{ 0xfffde000, KB(132), ORDINARY, 0 } } },
	{ "all but two", KB(4), 0xffffe000, 0x8050000, WALK_TOP, 150, {
		{ 0xf7fd0000, KB(16), WHOLE, 0 },
		{ 0xfffdd000, KB(132), ORDINARY, 0 } } },
	{ "64 MiB sealed, a device behind", KB(4), 0xc0000000, 0x8050000, WALK_TOP, 40000, {
		{ 0x90003000, MB(64), SEALED, MB(64) },
		{ 0x94003000, KB(4), ORDINARY, 0 },
		{ 0xbffdf000, KB(132), ORDINARY, 0 } } },
	{ "2 MiB pages, one cut by RAM above", KB(4), 0xffffe000, 0x8050000, 0xb00ff000, 2000, {
		{ 0xafe00000, MB(8), MB(2), KB(1020) } } },
#endif
};

static void walk_layout(const struct layout *l, int sealed_first)
{
	const addr last = l->to - 1;
	addr inside, lowest, beyond, from, end;
	long calls = 0;
	int i, j;

	snprintf(about, sizeof(about), "%s", l->name);
	begin_layout(l->page, l->top);
	model.sealed_first = sealed_first;
	for (i = 0; i < 12 && l->mapping[i].size; i++)
		WALK_MUST(place(l->mapping[i].from, l->mapping[i].size, l->mapping[i].kind), "the layout is wrong");
	unmap(l->from, l->to);
	WALK_MUST(!model.astray, "what is beside has been touched");
	judge_gap(l->from, last, &calls);
	for (i = 0; i < 12 && l->mapping[i].size; i++) {
		inside = lowest = beyond = 0;
		for (j = find_vma(l->from); j < model.n && model.vma[j].from <= last; j++)
			if (model.vma[j].id == i) {
				from = model.vma[j].from < l->from ? l->from : model.vma[j].from;
				lowest = inside ? lowest : from;
				beyond = model.vma[j].to - 1 > last ? last + 1 : model.vma[j].to;
				inside += beyond - from;
			}
		from = l->mapping[i].from < l->from ? l->from : l->mapping[i].from;
		end = l->mapping[i].from + l->mapping[i].size;
		end = end - 1 > last ? last + 1 : end;
		WALK_MUST(inside == l->mapping[i].stays && (!inside || lowest == from || beyond == end), "not what should stay");
	}
	WALK_MUST(model.n > 0 || model.calls - model.useful < 160, "the top is found late");
	WALK_MUST(model.calls <= l->calls, "too many calls");
	WALK_MUST(model.calls <= calls, "more calls than the rule says");
}

static void walk_named(void)
{
	size_t i;

	model_instead_of_kernel();
	for (i = 0; i < sizeof(spaces) / sizeof(spaces[0]); i++) {
		walk_layout(&spaces[i], 0);
		if (spaces[i].calls < 10000)
			walk_layout(&spaces[i], 1);
	}
}

static const char *walk_layouts(void)
{
	TRY(spawn(walk_named));
	return killed_synchronously();
}

static unsigned long long seed;

/* 0 to n - 1 */
static addr any(addr n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (addr)((seed * 0x2545f4914f6cdd1dULL) >> 16) % n;
}

/* Small ones are as probable as large ones. */
static addr any_size(int bits)
{
	return 1 + any(1UL << any((addr)bits + 1));
}

/* A mapping at or behind *at, which then is behind it. */
static void any_mapping(addr *at)
{
	const addr page = model.page, block = page << any(sizeof(long) == 8 ? 23 : 12);
	const addr boundary = ((*at + block) & -block) + block;
	addr from = *at, size = any_size(10) * page, kind = any(4);

	if (kind > WHOLE) {
		kind = page << (any(4) ? 4 : sizeof(long) == 4 ? 8 : any(8) ? 9 : 13);
		size = any_size(2) * kind;
		from = (from + kind - 1) & -kind;
	} else {
		if (kind == WHOLE)
			size = (any(8) ? 1 + any(8) : (1UL << any(10)) + 1) * page;
		else if (kind == SEALED)
			size = any_size(any(16) ? 3 : any(32) ? 8 : 15) * page;
		else if (kind == ORDINARY && !any(8))
			size = any_size(sizeof(long) == 8 ? 20 : 12) * page;
		if (!any(32))		/* across the boundary of blocks */
			from = boundary - size / page / 2 * page;
		else if (!any(64))
			from = model.top - size;
	}
	place(from, size, kind);
	from += size;
	if (!any(8))
		from += any_size(sizeof(long) == 8 ? 24 : 14) * page;
	else if (any(2))
		from += (1 + any(16)) * page;
	*at = from > *at ? from : model.top;
}

static void any_layout(const char *what, int number, addr image, addr image_end)
{
	static const unsigned char bits[] = { 47, 56, 48, 52, 39, 38, 42, 53 };
	static const addr tops32[] = { 0xc0000000, 0xbf000000, 0xfffff000, 0xffffe000 };
	const addr page = KB(4) << 2 * any(sizeof(long) == 8 ? 3 : 1);
	const int n = (int)any_size(7);
	addr at;
	int i;

	snprintf(about, sizeof(about), "%s, SEED=%d", what, number);
	begin_layout(page, sizeof(long) == 8 ? (1UL << bits[any(image ? 4 : 8)] % (8 * sizeof(long))) - any(2) * page :
		tops32[any(4)] & -page);
	model.sealed_first = (int)any(2);
	image &= -page;
	image_end = (image_end + page - 1) & -page;
	place(image, image_end - image, ORDINARY);
	at = any(4) ? any(model.top) & -page : image;
	for (i = 0; i < n && at < model.top; i++) {
		any_mapping(&at);
		if (!any(32) && i < n / 2)
			at = any(model.top) & -page;
	}
}

/* A start, an end or the middle of a mapping. */
static addr any_place(void)
{
	const struct vma *const v = &model.vma[any((addr)model.n)];

	return any(3) ? any(2) ? v->from : v->to : v->from + any((v->to - v->from) / model.page) * model.page;
}

static int first_seed(void)
{
	const char *text = getenv("SEED");

	return text ? atoi(text) : 1;
}

/* RAM between what is walked. */
static void walk_randomly(void)
{
	addr cut[9], swap;
	const int first = first_seed(), n = effort(1000);
	int number, i, j, cuts_;
	long limit;

	model_instead_of_kernel();
	for (number = first; number - first < n; number++) {
		seed = 0x9e3779b97f4a7c15ULL * (unsigned)number + 1;
		any_layout("random mappings", number, 0, 0);
		if (!model.n)
			continue;
		cuts_ = (int)any(5) * 2;
		for (i = 0; i < cuts_; i++) {
			cut[i] = any_place();
			for (j = i; j > 0 && cut[j - 1] > cut[j]; j--) {
				swap = cut[j];
				cut[j] = cut[j - 1];
				cut[j - 1] = swap;
			}
		}
		for (i = 0; i <= cuts_; i += 2) {
			const addr from = i ? cut[i - 1] : 0, to = i < cuts_ ? cut[i] : WALK_TOP;

			if (from == to)
				continue;
			unmap(from, to);
			WALK_MUST(!model.astray, "what is beside has been touched");
			limit = 0;
			judge_gap(from, to - 1, &limit);
			WALK_MUST(model.calls <= limit, "more calls than the rule says");
		}
	}
}

static const char *walk_random(void)
{
	TRY(spawn(walk_randomly));
	return killed_synchronously();
}

/* The gaps between what is spared. */
static void judge_release(void)
{
	addr from = 0, next, last;
	long calls = 1;
	int i, in = -1;

	WALK_MUST(!model.astray, "RAM or image has been touched");
	for (;;) {
		next = ~0UL;
		last = WALK_TOP - 1;
		for (in = -1, i = 0; i < model.spares; i++)
			if (model.spare[i].last >= from && (in < 0 || model.spare[i].from < next)) {
				in = i;
				next = model.spare[i].from;
			}
		if (in >= 0)
			last = next - 1;
		if (in < 0 || next > from)
			judge_gap(from, last, &calls);
		if (in < 0)
			break;
		from = model.spare[in].last + 1;
	}
	WALK_MUST(model.calls <= calls, "more calls than the rule says");
}

static void release(void)
{
	model.calls = 0;
	model.walking = 1;
	WALK_MUST(atd_release() == 1, "nothing is released");
	model.walking = 0;
	judge_release();
}

static void any_ram(const struct atd_area *image)
{
	addr from = any(8) ? any_place() : image->from, to = any(8) ? any_place() : image->to, swap;

	if (to < from) {
		swap = from;
		from = to;
		to = swap;
	}
	from += any(3) ? 0 : any(model.page);
	to -= any(3) ? 0 : any(model.page);
	if (from >= 1UL << 16 && to > from)
		async_teardown_ram((void *)from, to - from);
}

static void walk_whole_releases(void)
{
	const int first = first_seed(), n = effort(300);
	struct atd_area image, *const surveyed = &atd_shared.area[ATD_RANGES];
	int number, i;
	addr rams;

	model_instead_of_kernel();
	for (number = first; number - first < n; number++) {
		seed = 0x9e3779b97f4a7c15ULL * (unsigned)number + 1;
		image.from = 0x8048000 + any(sizeof(long) == 8 ? 1UL << 46 : 1UL << 29) / 4096 * 4096;
		image.to = image.from + 4096 + any(1UL << 18);
		any_layout("a release", number, image.from, image.to);
		memset(atd_shared.area, 0, sizeof(atd_shared.area));
		atd_find_image();
		for (rams = any(12); rams; rams--)
			any_ram(&image);
		for (i = 0; i < ATD_RANGES; i++)
			if (atd_shared.area[i].to)
				spare(atd_shared.area[i].from & -model.page, (atd_shared.area[i].to - 1) | (model.page - 1));
		spare(image.from & -model.page, (image.to - 1) | (model.page - 1));
		WALK_MUST(atd_survey() == 1, "the image is not found");
		WALK_MUST(surveyed->from == ((addr)atd_arg(atd_image_start) & -model.page) &&
			surveyed->to - 1 == (((addr)atd_arg(atd_image_end) - 1) | (model.page - 1)),
			"the image is not where it is");
		/* The real one is somewhere else in each process; what fails has to fail again. */
		surveyed->from = image.from & -model.page;
		surveyed->to = (image.to + model.page - 1) & -model.page;
		release();
		/* when RAM has been freed */
		for (i = 0; i < ATD_RANGES; i++)
			atd_shared.area[i].to = 0;
		model.spare[0] = model.spare[model.spares - 1];
		model.spares = 1;
		release();
	}
}

static const char *walk_release(void)
{
	if (atd_shadow_stack())
		SKIP("not with a shadow stack");
	atd_shared.page = WALK_PAGE;
	atd_find_image();
	if (!atd_survey())
		SKIP("the linker does not tell where the image is");
	TRY(spawn(walk_whole_releases));
	return killed_synchronously();
}

#else

static const char *walk_layouts(void) { SKIP("only for x86 and aarch64"); }
static const char *walk_random(void) { SKIP("only for x86 and aarch64"); }
static const char *walk_release(void) { SKIP("only for x86 and aarch64"); }

#endif

static const struct test walk_tests[] = {
	{ "walk_layouts", walk_layouts, "address spaces of many kinds, modelled: nothing is left but what must, in few calls" },
	{ "walk_random", walk_random, "random address spaces, modelled" },
	{ "walk_release", walk_release, "random RAM in them: RAM and image are never touched, all else goes" },
	{ NULL, NULL, NULL }
};
