// Lock step: a fiber for each thread of a threadgroup, which runs until it must wait for the others.
#pragma once

#include "fiber.h"
#include "regions.h"

#include <cstdlib>

namespace metal_host {
namespace {

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

// The thread at fault never runs again, nor does any other: the scheduler looks at `failed` first.
void stop() {
    metal_host_switch(&running->stack_pointer, scheduler);
    std::abort();
}

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
    own_stack = reinterpret_cast<std::uintptr_t>(stacks + (&f - fibers) * stack_size);
    f.state = State::ready;
    metal_host_switch(&scheduler, f.stack_pointer);
}

void prepare(unsigned i) {
    fibers[i].stack_pointer = fresh_stack(stacks + (i + 1) * stack_size, fiber_main);
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
    if (a.state != b.state || a.state == State::ended) // a thread that ended stands at no line
        return a.state == b.state;
    return a.what == b.what && a.site.line == b.site.line && !std::strcmp(a.site.file, b.site.file);
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

// The lowest word of each stack is as it was mapped: nothing grew that far, nor into the stack below.
bool stacks_whole(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (*reinterpret_cast<const std::uint64_t *>(stacks + i * stack_size)) {
            fault = nullptr;
            complain("the stack of thread %u overflowed: it has %zu KB here", i, stack_size >> 10);
            return false;
        }
    return true;
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
            return stacks_whole(count);
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

} // namespace
} // namespace metal_host
