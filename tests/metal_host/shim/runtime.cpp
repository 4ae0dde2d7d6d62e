// The machine under the shim: a fiber for each thread of a threadgroup, lock step, and a check of every access.
//
// A kernel is compiled with the calls of the thread sanitizer before each access to memory; those calls are defined
// here. Each buffer and each array in threadgroup memory lies in the middle of a slot of address space of its own,
// so that a wrong index lands in nothing, and the slot tells which buffer was meant.
//
// Two accesses to the same granule by different threads, one of them a write, must be parted by a barrier that
// orders that kind of memory: tags hold for each granule who last wrote and read it, and in which interval between
// barriers. The law is checked for every pair that happens in one launch, whatever the order of the fibers.
#include "runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace metal_host {

const Thread *self;
const Group *group;
const Launch *launch;

namespace {

constexpr unsigned most_threads = 1024;
constexpr std::size_t threadgroup_limit = 32768; // bytes, of every Apple GPU so far
constexpr unsigned buffer_slots = 40, array_slots = 24, slots = buffer_slots + array_slots;
constexpr unsigned slot_shift = 36; // an index of 32 bits, times 16 bytes, stays within half a slot
constexpr std::size_t slot_size = std::size_t{1} << slot_shift, middle = slot_size / 2;
constexpr std::size_t stack_size = 128 << 10, page = 16384;

// ---- fibers

#if defined(__x86_64__)
// Saves what a callee must keep and goes to another stack.
asm(R"(
.text
.type metal_host_switch,@function
metal_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size metal_host_switch,.-metal_host_switch
)");
constexpr unsigned saved = 6, entry = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 2
metal_host_switch:
_metal_host_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr unsigned saved = 20, entry = 11;
#else
#error "the switch of fibers is written for x86-64 and AArch64"
#endif
extern "C" void metal_host_switch(void **from, void *to);

enum class State : std::uint8_t { ready, meeting, barrier, ended };

struct Fiber {
    Thread place;
    void *stack_pointer;
    State state;
    const char *what; // the simdgroup function or barrier at which it waits
    Site site;
    std::uint64_t same;
    bool device, threadgroup; // what the barrier orders
    unsigned parity;
};

Fiber fibers[most_threads];
Fiber *running;
void *scheduler;
unsigned char *stacks;
void *const *arguments;

// ---- errors

char *message;
std::size_t message_bytes;
bool failed;
const void *fault; // return address of the access at fault, for the caller to find the line

void say(const char *format, va_list rest) {
    if (failed)
        return;
    failed = true;
    std::vsnprintf(message, message_bytes, format, rest);
}

__attribute__((format(printf, 1, 2))) void complain(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    say(format, rest);
    va_end(rest);
}

// The thread at fault never runs again, nor does any other: the scheduler looks at `failed` first.
[[noreturn]] void stop() {
    metal_host_switch(&running->stack_pointer, scheduler);
    std::abort();
}

// ---- memory

struct Region {
    unsigned char *at;
    std::size_t bytes, granule;
    char name[64];
    bool used, writable, initialised, group_memory;
    std::uint64_t *written, *read; // tags, one a granule
};

Region regions[slots];
std::uintptr_t base; // of slot 0

// A tag: interval of the threadgroup (32 bits), interval of the simdgroup (20), thread (10), flags (2).
constexpr std::uint64_t many_lanes = 1, many_groups = 2;
struct Clock {
    std::uint32_t first, now; // threadgroup intervals; those below `first` belong to earlier threadgroups
    std::uint32_t simdgroup[most_threads / lanes];
};
Clock clocks[2]; // device memory, threadgroup memory

std::uint64_t tag(const Clock &clock, unsigned thread) {
    return std::uint64_t{clock.now} << 32 | std::uint64_t{clock.simdgroup[thread / lanes] & 0xfffff} << 12 |
           std::uint64_t{thread} << 2;
}
unsigned interval(std::uint64_t t) { return unsigned(t >> 32); }
unsigned fine(std::uint64_t t) { return unsigned(t >> 12) & 0xfffff; }
unsigned thread_of(std::uint64_t t) { return unsigned(t >> 2) & 1023; }

// Whether an access with tag `then` is unordered with one that this thread makes now.
bool conflict(std::uint64_t then, std::uint64_t now, const Clock &clock, bool group_memory) {
    if (then == 0)
        return false;
    if (interval(then) < clock.first)
        return !group_memory; // by another threadgroup: nothing orders device memory between them
    if (interval(then) != interval(now))
        return false;
    if (then & many_groups || thread_of(then) / lanes != thread_of(now) / lanes)
        return true;
    return fine(then) == fine(now) && (then & many_lanes || thread_of(then) != thread_of(now));
}

void racing(const Region &r, std::size_t offset, std::uint64_t then, const char *mine, const char *theirs) {
    const Thread &t = *self;
    const Clock &clock = clocks[r.group_memory];
    if (interval(then) < clock.first)
        complain("race: %s of byte %zu of %s by thread %u of threadgroup (%u,%u,%u), %s in another threadgroup", mine,
                 offset, r.name, t.index, group->position.x, group->position.y, group->position.z, theirs);
    else
        complain("race: %s of byte %zu of %s by thread %u of threadgroup (%u,%u,%u), %s by thread %u%s with no barrier "
                 "between",
                 mine, offset, r.name, t.index, group->position.x, group->position.y, group->position.z, theirs,
                 thread_of(then), then & 3 ? " and others" : "");
    stop();
}

std::uint64_t joined(std::uint64_t then, std::uint64_t now) {
    if (interval(then) != interval(now))
        return now;
    if (then & many_groups || thread_of(then) / lanes != thread_of(now) / lanes)
        return now | many_groups;
    if (fine(then) == fine(now) && (then & many_lanes || thread_of(then) != thread_of(now)))
        return now | many_lanes;
    return now;
}

void record(Region &r, std::size_t offset, std::size_t bytes, bool write) {
    const Clock &clock = clocks[r.group_memory];
    const std::uint64_t now = tag(clock, self->index);
    for (std::size_t g = offset / r.granule; g <= (offset + bytes - 1) / r.granule; g++) {
        const std::size_t at = g * r.granule;
        const std::uint64_t writer = r.written[g], reader = r.read[g];
        if (conflict(writer, now, clock, r.group_memory))
            racing(r, at, writer, write ? "write" : "read", "written");
        if (write) {
            if (conflict(reader, now, clock, r.group_memory))
                racing(r, at, reader, "write", "read");
            r.written[g] = now;
        } else {
            const bool known = r.initialised || (r.group_memory ? interval(writer) >= clock.first : writer != 0);
            if (!known) {
                complain("read of byte %zu of %s, which nothing has written, by thread %u of threadgroup (%u,%u,%u)", at,
                         r.name, self->index, group->position.x, group->position.y, group->position.z);
                stop();
            }
            r.read[g] = joined(reader, now);
        }
    }
}

// The linker's names for both ends of this shared object: constants of the kernel and the shim's own data.
extern "C" const char __ehdr_start __attribute__((visibility("hidden"))), _end __attribute__((visibility("hidden")));
const auto module_low = reinterpret_cast<std::uintptr_t>(&__ehdr_start), module_high = reinterpret_cast<std::uintptr_t>(&_end);

[[gnu::noinline]] void astray(std::uintptr_t address, std::size_t bytes, bool write) {
    const std::size_t slot = (address - base) >> slot_shift;
    const char *verb = write ? "write" : "read";
    if (slot < slots && regions[slot].used) {
        const Region &r = regions[slot];
        complain("out of bounds: %s of %zu bytes at byte %lld of %s, which has %zu; thread (%u,%u,%u) of the grid", verb,
                 bytes, (long long)(address - std::uintptr_t(r.at)), r.name, r.bytes, self->in_grid.x, self->in_grid.y,
                 self->in_grid.z);
    } else
        complain("out of bounds: %s of %zu bytes at %#zx, which is in no buffer; thread (%u,%u,%u) of the grid", verb,
                 bytes, std::size_t(address), self->in_grid.x, self->in_grid.y, self->in_grid.z);
    stop();
}

inline void access(const volatile void *p, std::size_t bytes, bool write, bool aligned, const void *from) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const auto stack = reinterpret_cast<std::uintptr_t>(stacks) + (running - fibers) * stack_size;
    if (address - stack < stack_size || address - module_low < module_high - module_low)
        return;
    fault = from;
    const std::size_t slot = (address - base) >> slot_shift;
    if (slot >= slots || !regions[slot].used)
        astray(address, bytes, write);
    Region &r = regions[slot];
    const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(r.at);
    if (offset >= r.bytes || bytes > r.bytes - offset)
        astray(address, bytes, write);
    if (aligned && address % bytes) {
        complain("misaligned: %s of %zu bytes at byte %zu of %s; thread (%u,%u,%u) of the grid", write ? "write" : "read",
                 bytes, offset, r.name, self->in_grid.x, self->in_grid.y, self->in_grid.z);
        stop();
    }
    if (r.written)
        record(r, offset, bytes, write);
    else if (write) {
        complain("write to %s, which is an input; thread (%u,%u,%u) of the grid", r.name, self->in_grid.x,
                 self->in_grid.y, self->in_grid.z);
        stop();
    }
}

// ---- the simdgroup meets

unsigned char exchange[2][most_threads][slot_bytes];
unsigned char summing[lanes];

void wait(State state, const char *what, Site site) {
    running->state = state;
    running->what = what;
    running->site = site;
    metal_host_switch(&running->stack_pointer, scheduler);
}

void fiber_main() {
    thread_main(arguments);
    running->state = State::ended;
    metal_host_switch(&running->stack_pointer, scheduler);
    std::abort();
}

void resume(Fiber &f) {
    running = &f;
    self = &f.place;
    f.state = State::ready;
    metal_host_switch(&scheduler, f.stack_pointer);
}

void prepare(unsigned i) {
    auto *top = reinterpret_cast<void **>(stacks + (i + 1) * stack_size);
    // The callee finds the stack as after a call: 16-byte aligned before the return address.
    void **frame = top - 2 - saved - 2;
    frame[entry] = reinterpret_cast<void *>(&fiber_main);
    fibers[i].stack_pointer = frame;
    fibers[i].state = State::ready;
    fibers[i].parity = 0;
}

void diverged(const Fiber &a, const Fiber &b, const char *whom) {
    fault = nullptr;
    const auto doing = [](const Fiber &f, char (&text)[160]) {
        if (f.state == State::ended)
            return "has ended";
        std::snprintf(text, sizeof text, "is at %s (%s:%d)", f.what, f.site.file, f.site.line);
        return static_cast<const char *>(text);
    };
    char one[160], other[160];
    complain("divergence within a %s: thread %u %s, thread %u %s; threadgroup (%u,%u,%u)", whom, a.place.index,
             doing(a, one), b.place.index, doing(b, other), group->position.x, group->position.y, group->position.z);
}

bool together(const Fiber &a, const Fiber &b) {
    if (a.state != b.state)
        return false;
    return a.state == State::ended || (a.site.line == b.site.line && a.what == b.what && !std::strcmp(a.site.file, b.site.file));
}

// Runs a simdgroup until all its lanes wait at one threadgroup barrier or all have ended.
bool run_simdgroup(unsigned first, unsigned count) {
    for (;;) {
        for (unsigned k = 0; k < count; k++) {
            Fiber &f = fibers[first + (launch->reverse ? count - 1 - k : k)];
            resume(f);
            if (failed)
                return false;
        }
        for (unsigned k = 1; k < count; k++)
            if (!together(fibers[first], fibers[first + k])) {
                diverged(fibers[first], fibers[first + k], "simdgroup");
                return false;
            } else if (fibers[first].state == State::meeting && fibers[first].same != fibers[first + k].same) {
                fault = nullptr;
                complain("%s:%d: threads %u and %u of a simdgroup give %s different arguments", fibers[first].site.file,
                         fibers[first].site.line, first, first + k, fibers[first].what);
                return false;
            }
        if (fibers[first].state != State::meeting)
            return true;
    }
}

bool run_group() {
    const unsigned count = group->count;
    for (unsigned i = 0; i < count; i++)
        prepare(i);
    for (;;) {
        const unsigned sets = (count + lanes - 1) / lanes;
        for (unsigned k = 0; k < sets; k++) {
            const unsigned s = launch->reverse ? sets - 1 - k : k;
            const unsigned first = s * lanes;
            if (!run_simdgroup(first, count - first < lanes ? count - first : lanes))
                return false;
        }
        for (unsigned i = lanes; i < count; i += lanes)
            if (!together(fibers[0], fibers[i])) {
                diverged(fibers[0], fibers[i], "threadgroup");
                return false;
            }
        if (fibers[0].state == State::ended)
            return true;
        if (fibers[0].device)
            clocks[0].now++;
        if (fibers[0].threadgroup)
            clocks[1].now++;
    }
}

void shuffle_lanes(std::uint32_t seed) {
    for (unsigned i = 0; i < lanes; i++)
        summing[i] = static_cast<unsigned char>(i);
    for (unsigned i = lanes - 1; seed && i > 0; i--) {
        seed = seed * 1664525u + 1013904223u;
        const unsigned j = (seed >> 8) % (i + 1);
        const unsigned char kept = summing[i];
        summing[i] = summing[j];
        summing[j] = kept;
    }
}

void place(const Launch &l, unsigned gx, unsigned gy, unsigned gz, Group &g) {
    const Size start{gx * l.group.x, gy * l.group.y, gz * l.group.z};
    const auto least = [](unsigned a, unsigned b) { return a < b ? a : b; };
    g.position = {gx, gy, gz};
    g.threads = {least(l.group.x, l.grid.x - start.x), least(l.group.y, l.grid.y - start.y),
                 least(l.group.z, l.grid.z - start.z)};
    g.count = g.threads.x * g.threads.y * g.threads.z;
    unsigned i = 0;
    for (unsigned z = 0; z < g.threads.z; z++)
        for (unsigned y = 0; y < g.threads.y; y++)
            for (unsigned x = 0; x < g.threads.x; x++, i++)
                fibers[i].place = {{start.x + x, start.y + y, start.z + z}, {x, y, z}, i};
}

void new_group() {
    for (Clock &c : clocks) {
        c.first = ++c.now;
        std::memset(c.simdgroup, 0, sizeof c.simdgroup);
    }
    for (unsigned s = buffer_slots; s < slots; s++)
        if (regions[s].used)
            std::memset(regions[s].at, 0xff, regions[s].bytes); // a NaN in every float format
}

void run_grid() {
    const Launch &l = *launch;
    const std::uint64_t all = std::uint64_t{l.groups.x} * l.groups.y * l.groups.z;
    static Group g;
    group = &g;
    for (std::uint64_t k = 0; k < all; k++) {
        const std::uint64_t n = l.reverse ? all - 1 - k : k;
        place(l, unsigned(n % l.groups.x), unsigned(n / l.groups.x % l.groups.y),
              unsigned(n / l.groups.x / l.groups.y), g);
        new_group();
        if (!run_group())
            return;
    }
}

std::size_t whole_pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }

void *zeroed(std::size_t bytes) {
    void *p = mmap(nullptr, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

bool open_region(Region &r, unsigned slot, std::size_t bytes, std::size_t granule, bool writable) {
    r.used = true;
    r.bytes = bytes;
    r.granule = granule;
    r.writable = writable;
    r.group_memory = slot >= buffer_slots;
    r.at = reinterpret_cast<unsigned char *>(base + (std::size_t{slot} << slot_shift) + middle);
    if (mprotect(r.at, whole_pages(bytes + 1), PROT_READ | PROT_WRITE))
        return false;
    if (!writable)
        return true;
    const std::size_t tags = (bytes / granule + 2) * sizeof(std::uint64_t);
    r.written = static_cast<std::uint64_t *>(zeroed(tags));
    r.read = static_cast<std::uint64_t *>(zeroed(tags));
    return r.written && r.read;
}

void close_region(Region &r) {
    const std::size_t tags = whole_pages((r.bytes / (r.granule ? r.granule : 1) + 2) * sizeof(std::uint64_t));
    if (r.written)
        munmap(r.written, tags);
    if (r.read)
        munmap(r.read, tags);
    r = Region{};
}

} // namespace

void fail(Site site, const char *format, ...) {
    char text[512];
    va_list rest;
    va_start(rest, format);
    std::vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    fault = nullptr;
    complain("%s:%d: %s; thread (%u,%u,%u) of the grid", site.file, site.line, text, self->in_grid.x, self->in_grid.y,
             self->in_grid.z);
    stop();
}

const unsigned char *meet(const char *what, Site site, const void *mine, std::size_t bytes, std::uint64_t same) {
    Fiber &f = *running;
    const unsigned first = f.place.index / lanes * lanes;
    std::memcpy(exchange[f.parity][f.place.index], mine, bytes);
    const unsigned char *all = exchange[f.parity][first];
    f.parity ^= 1; // the other half may still be read by a lane that comes later
    f.same = same;
    wait(State::meeting, what, site);
    return all;
}

bool present(unsigned lane) { return self->index / lanes * lanes + lane < group->count; }

const unsigned char *order() { return summing; }

void barrier(bool device, bool threadgroup, Site site) {
    running->device = device;
    running->threadgroup = threadgroup;
    wait(State::barrier, "threadgroup_barrier", site);
}

void simdgroup_barrier(bool device, bool threadgroup, Site site) {
    const unsigned mine = self->index / lanes;
    meet("simdgroup_barrier", site, "", 1, 0);
    // Each lane is past the meeting once; the last lane's count is the first that differs for all.
    const bool leads = self->index == (launch->reverse ? (group->count < (mine + 1) * lanes ? group->count : (mine + 1) * lanes) - 1
                                                       : mine * lanes);
    if (!leads)
        return;
    clocks[0].simdgroup[mine] += device;
    clocks[1].simdgroup[mine] += threadgroup;
}

void *threadgroup_memory(int key, const char *name, std::size_t bytes, std::size_t align) {
    const unsigned slot = buffer_slots + unsigned(key);
    if (slot >= slots)
        fail({name, 0}, "more than %u arrays in threadgroup memory", array_slots);
    Region &r = regions[slot];
    if (r.used)
        return r.at;
    if (align > page || !open_region(r, slot, bytes, 1, true))
        fail({name, 0}, "no memory for it");
    std::snprintf(r.name, sizeof r.name, "threadgroup array %s", name);
    std::memset(r.at, 0xff, bytes);
    std::size_t sum = 0;
    for (unsigned s = buffer_slots; s < slots; s++)
        sum += regions[s].bytes;
    if (sum > threadgroup_limit)
        fail({name, 0}, "%zu bytes of threadgroup memory; an Apple GPU has %zu", sum, threadgroup_limit);
    return r.at;
}

void touch_atomic(const volatile void *p, std::size_t bytes, Site) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    fault = __builtin_return_address(0);
    const std::size_t slot = (address - base) >> slot_shift;
    if (slot >= slots || !regions[slot].used || address - std::uintptr_t(regions[slot].at) > regions[slot].bytes - bytes)
        astray(address, bytes, true);
    Region &r = regions[slot];
    if (!r.written)
        return;
    const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(r.at);
    for (std::size_t g = offset / r.granule; g <= (offset + bytes - 1) / r.granule; g++)
        r.written[g] = tag(clocks[r.group_memory], self->index);
}

} // namespace metal_host

// ---- what the compiler calls before each access (the thread sanitizer's interface)

using metal_host::access;
#define ACCESS(size)                                                                                                   \
    void __tsan_read##size(void *p) { access(p, size, false, true, __builtin_return_address(0)); }                     \
    void __tsan_write##size(void *p) { access(p, size, true, true, __builtin_return_address(0)); }                     \
    void __tsan_unaligned_read##size(void *p) { access(p, size, false, false, __builtin_return_address(0)); }          \
    void __tsan_unaligned_write##size(void *p) { access(p, size, true, false, __builtin_return_address(0)); }          \
    void __tsan_volatile_read##size(void *p) { access(p, size, false, true, __builtin_return_address(0)); }            \
    void __tsan_volatile_write##size(void *p) { access(p, size, true, true, __builtin_return_address(0)); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { access(p, n, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void *p, unsigned long n) { access(p, n, true, false, __builtin_return_address(0)); }
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// ---- and where an index, an address or a shift is out of its range (the undefined behaviour sanitizer's)

struct Where {
    const char *file;
    unsigned line, column;
};
#define UNDEFINED(name, text)                                                                                          \
    void __ubsan_handle_##name(Where *w, unsigned long a) {                                                            \
        metal_host::fail({w->file, int(w->line)}, text, a);                                                            \
    }
#define UNDEFINED2(name, text)                                                                                         \
    void __ubsan_handle_##name(Where *w, unsigned long a, unsigned long b) {                                           \
        metal_host::fail({w->file, int(w->line)}, text, a, b);                                                         \
    }
UNDEFINED(out_of_bounds, "out of bounds: index %ld of an array")
UNDEFINED(type_mismatch_v1, "misaligned: an access to address %#lx that its type does not allow")
UNDEFINED2(shift_out_of_bounds, "shift of %ld by %ld bits")
UNDEFINED2(divrem_overflow, "division of %ld by %ld")

// ---- the way in

struct Given {
    const char *name;
    void *data;
    unsigned long long bytes, granule;
    unsigned char *unwritten; // for outputs: a byte for each granule, 1 if nothing wrote it
    int writable, initialised;
};

struct Result {
    char *message;
    unsigned long long message_bytes;
    unsigned long long fault; // offset in this object of the access at fault, or 0
};

__attribute__((visibility("default"))) int metal_host_launch(const metal_host::Launch *l, const Given *given,
                                                             unsigned count, Result *result) {
    using namespace metal_host;
    static Launch kept_launch; // where a kernel may read it
    kept_launch = *l;
    launch = &kept_launch;
    message = result->message;
    message_bytes = result->message_bytes;
    message[0] = 0;
    failed = false;
    fault = nullptr;
    for (Clock &c : clocks)
        c = Clock{};
    shuffle_lanes(l->shuffle);
    const std::size_t reserved = (std::size_t{slots} + 1) << slot_shift;
    void *space = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    stacks = static_cast<unsigned char *>(zeroed(most_threads * stack_size));
    if (space == MAP_FAILED || !stacks || count > buffer_slots)
        return -1;
    base = (reinterpret_cast<std::uintptr_t>(space) + slot_size - 1) >> slot_shift << slot_shift;
    static void *pointers[buffer_slots];
    for (unsigned i = 0; i < count; i++) {
        Region &r = regions[i];
        if (!open_region(r, i, given[i].bytes, given[i].granule, given[i].writable))
            return -1;
        std::snprintf(r.name, sizeof r.name, "%s", given[i].name);
        r.initialised = given[i].initialised;
        std::memcpy(r.at, given[i].data, given[i].bytes);
        pointers[i] = r.at;
    }
    arguments = pointers;
#if defined(__x86_64__)
    const unsigned kept = _mm_getcsr();
    if (l->flush)
        _mm_setcsr(kept | 0x8040);
#endif
    run_grid();
#if defined(__x86_64__)
    _mm_setcsr(kept);
#endif
    for (unsigned i = 0; i < count; i++)
        if (given[i].writable) {
            std::memcpy(given[i].data, regions[i].at, given[i].bytes);
            for (std::size_t g = 0; g < given[i].bytes / given[i].granule; g++)
                given[i].unwritten[g] = !regions[i].written[g];
        }
    for (Region &r : regions)
        close_region(r);
    munmap(space, reserved);
    munmap(stacks, whole_pages(most_threads * stack_size));
    result->fault = failed && fault ? reinterpret_cast<std::uintptr_t>(fault) - module_low : 0;
    return failed ? 1 : 0;
}
} // extern "C"
