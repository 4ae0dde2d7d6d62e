// What the shim of the Metal language asks of the machine underneath: who am I, meet the others, stop with a message.
#pragma once

#include <cstddef>
#include <cstdint>

namespace metal_host {

constexpr unsigned lanes = 32;
constexpr std::size_t slot_bytes = 64; // the widest value that a simdgroup function passes: a vector of four 64-bit

struct Size {
    unsigned x, y, z;
};

// Where a thread stands; `index` counts within the threadgroup, x fastest.
struct Thread {
    Size in_grid, in_group;
    unsigned index;
};

struct Group {
    Size position, threads, simdgroups;
    unsigned count;
};

struct Launch {
    Size grid, group;      // as dispatchThreads gets them, group already cut to the grid
    Size groups;           // threadgroups in each dimension
    std::uint32_t shuffle; // 0: sums in the documented order; else the seed of another
    std::uint32_t reverse; // threadgroups last first, lanes last first
    std::uint32_t flush;   // subnormal numbers are zero to arithmetic, as they may be on a GPU
    std::uint32_t ulps;    // how far exp, log, rsqrt and their like may be from the nearest float
};

// A source line; what an error names.
struct Site {
    const char *file;
    int line;
};

extern const Thread *self;
extern const Group *group;
extern const Launch *launch;

inline unsigned lane() { return self->index % lanes; }

// Every lane of the simdgroup comes to the same call, each with a value; returns the 32 values, slot_bytes apart.
// They stay until the lane's next call. `same` must be the same for all lanes.
const unsigned char *meet(const char *what, Site site, const void *mine, std::size_t bytes, std::uint64_t same);
bool present(unsigned lane);                      // false for a lane beyond the edge of the grid
const unsigned char *order();                     // the lanes in the order in which a sum adds them
void barrier(bool device, bool threadgroup, Site site);
void simdgroup_barrier(bool device, bool threadgroup, Site site);
void *threadgroup_memory(int key, const char *name, std::size_t bytes, std::size_t align);
void touch_atomic(const volatile void *p, std::size_t bytes, Site site);
[[noreturn]] void fail(Site site, const char *format, ...) __attribute__((format(printf, 2, 3)));

[[noreturn]] void no_component(unsigned i, unsigned count);

// The kernel itself: one thread of it.
void thread_main(void *const *buffers);

} // namespace metal_host
