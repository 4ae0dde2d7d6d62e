// Memory of a kernel: where each buffer lies, who may touch it, and who has since the last barrier.
//
// Each buffer and each array in threadgroup memory lies in the middle of a slot of address space of its own, so that
// a wrong index lands in nothing, and the slot tells which buffer was meant.
//
// Two accesses to the same granule by different threads, one of them a write, must be parted by a barrier that
// orders that kind of memory: tags hold for each granule who last wrote and read it, and in which interval between
// barriers. The law is checked for every pair that happens in one launch, whatever the order of the fibers.
#pragma once

#include "runtime.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>

namespace metal_host {
namespace {

constexpr unsigned most_threads = 1024;
constexpr std::size_t threadgroup_limit = 32768; // bytes, of every Apple GPU so far
constexpr unsigned buffer_slots = 40, array_slots = 24, slots = buffer_slots + array_slots;
constexpr unsigned slot_shift = 36; // an index of 32 bits, times 16 bytes, stays within half a slot
constexpr std::size_t slot_size = std::size_t{1} << slot_shift, middle = slot_size / 2;
constexpr std::size_t stack_size = 128 << 10, page = 16384;

std::uintptr_t own_stack; // of the thread that runs

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

[[noreturn]] void stop(); // this thread and with it the launch, once it has complained

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
const auto module_low = reinterpret_cast<std::uintptr_t>(&__ehdr_start);
const auto module_high = reinterpret_cast<std::uintptr_t>(&_end);

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

inline void access(const volatile void *p, std::size_t bytes, bool write, const void *from) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    if (address - own_stack < stack_size || address - module_low < module_high - module_low)
        return;
    fault = from;
    const std::size_t slot = (address - base) >> slot_shift;
    if (slot >= slots || !regions[slot].used)
        astray(address, bytes, write);
    Region &r = regions[slot];
    const std::size_t offset = address - reinterpret_cast<std::uintptr_t>(r.at);
    if (offset >= r.bytes || bytes > r.bytes - offset)
        astray(address, bytes, write);
    if (r.written)
        record(r, offset, bytes, write);
    else if (write) {
        complain("write to %s, which is an input; thread (%u,%u,%u) of the grid", r.name, self->in_grid.x,
                 self->in_grid.y, self->in_grid.z);
        stop();
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
} // namespace metal_host
