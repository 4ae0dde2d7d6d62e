// The machine under the shim: what its headers ask for, what the compiler calls before each access, and the way in.
#include "lockstep.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace metal_host {

const Thread *self;
const Group *group;
const Launch *launch;

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

void no_component(unsigned i, unsigned count) {
    fault = __builtin_return_address(0);
    complain("out of bounds: component %u of a vector of %u; thread (%u,%u,%u) of the grid", i, count, self->in_grid.x,
             self->in_grid.y, self->in_grid.z);
    stop();
}

[[noreturn]] void misaligned(Site site, std::uintptr_t address) {
    const std::size_t slot = (address - base) >> slot_shift;
    if (slot < slots && regions[slot].used)
        fail(site, "misaligned: byte %lld of %s is no place for this type",
             (long long)(address - std::uintptr_t(regions[slot].at)), regions[slot].name);
    fail(site, "misaligned: address %#zx is no place for this type", std::size_t(address));
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
    // The first lane to go on from the meeting turns the clock, before any other touches memory.
    const unsigned first = mine * lanes, count = group->count - first < lanes ? group->count - first : lanes;
    const bool leads = self->index == (launch->reverse ? first + count - 1 : first);
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

// What the compiler calls before each access: the thread sanitizer's interface.

using metal_host::access;
#define ENTRY(name, size, write) \
    void __tsan_##name##size(void *p) { access(p, size, write, __builtin_return_address(0)); }
#define ACCESS(size) \
    ENTRY(read, size, false) \
    ENTRY(write, size, true) \
    ENTRY(unaligned_read, size, false) \
    ENTRY(unaligned_write, size, true) \
    ENTRY(volatile_read, size, false) \
    ENTRY(volatile_write, size, true)

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { access(p, n, false, __builtin_return_address(0)); }
void __tsan_write_range(void *p, unsigned long n) { access(p, n, true, __builtin_return_address(0)); }
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// And where an index or an address is out of its range: the undefined behaviour sanitizer's.

struct Where {
    const char *file;
    unsigned line, column;
};
void __ubsan_handle_out_of_bounds(Where *w, unsigned long index) {
    metal_host::fail({w->file, int(w->line)}, "out of bounds: index %ld of an array", long(index));
}
void __ubsan_handle_type_mismatch_v1(Where *w, unsigned long address) {
    metal_host::misaligned({w->file, int(w->line)}, address);
}
void __ubsan_handle_divrem_overflow(Where *w, unsigned long a, unsigned long b) {
    metal_host::fail({w->file, int(w->line)}, "division of %ld by %ld", long(a), long(b));
}

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
