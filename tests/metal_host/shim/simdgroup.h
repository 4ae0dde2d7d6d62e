// What the 32 threads of a simdgroup do together, and barriers (MSL specification, 6.9: synchronisation and
// simdgroup functions). All lanes that exist must come to the same call; the specification lets inactive lanes
// stay away, but a kernel that counts on it is an error here.
#pragma once

#include "functions.h"
#include "runtime.h"

#define METAL_HOST_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4, mem_threadgroup_imageblock = 8 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }

inline void threadgroup_barrier(mem_flags f, METAL_HOST_HERE) {
    metal_host::barrier(int(f) & 1, int(f) & 2, {file, line});
}
inline void simdgroup_barrier(mem_flags f, METAL_HOST_HERE) {
    metal_host::simdgroup_barrier(int(f) & 1, int(f) & 2, {file, line});
}

} // namespace metal

namespace metal_host {

// The values of one meeting, by lane.
template <class T> struct Values {
    static_assert(sizeof(T) <= slot_bytes);
    const unsigned char *at;
    T operator[](unsigned lane) const {
        T x;
        __builtin_memcpy(static_cast<void *>(&x), at + lane * slot_bytes, sizeof x);
        return x;
    }
};
template <class T> Values<T> gather(const char *what, Site site, const T &mine, std::uint64_t same = 0) {
    return {meet(what, site, &mine, sizeof mine, same)};
}

// Two values that lanes pass in one meeting: those of an earlier one are gone.
template <class A, class B> struct Pair {
    A first;
    B second;
};

// The value of a lane that a shuffle names; the specification leaves that of an absent lane undefined.
template <class T> T taken(const char *what, Site site, const Values<T> &all, unsigned from) {
    if (from >= lanes || !present(from))
        fail(site, "%s reads lane %u, which is not there", what, from);
    return all[from];
}

// A reduction: in pairs at distance 16, 8, 4, 2, 1, as a butterfly does, so that all lanes get the same bits. The
// language leaves the order open; another, from the launch's seed, finds kernels whose result hangs on it.
template <class T, class F> T reduced(const Values<T> &all, F f) {
    T part[lanes];
    bool there[lanes];
    for (unsigned i = 0; i < lanes; i++) {
        const unsigned from = order()[i];
        there[i] = present(from);
        if (there[i])
            part[i] = all[from];
    }
    for (unsigned half_way = lanes / 2; half_way; half_way /= 2)
        for (unsigned i = 0; i < half_way; i++) {
            if (there[i] && there[i + half_way])
                part[i] = f(part[i], part[i + half_way]);
            else if (there[i + half_way])
                part[i] = part[i + half_way];
            there[i] = there[i] || there[i + half_way];
        }
    return part[0];
}

template <class T> constexpr bool summable = is_scalar<T> ? sizeof(T) <= 4 : vector_like<T>::count > 0;

} // namespace metal_host

namespace metal {

#define METAL_HOST_REDUCTION(name, value) \
    template <class T> T name(T mine, METAL_HOST_HERE) { \
        static_assert(metal_host::summable<T>, #name " takes no 64-bit type"); \
        return metal_host::reduced(metal_host::gather(#name, {file, line}, mine), \
                                   [](T a, T b) { return T(value); }); \
    }
METAL_HOST_REDUCTION(simd_sum, a + b)
METAL_HOST_REDUCTION(simd_product, a *b)
METAL_HOST_REDUCTION(simd_max, max(a, b))
METAL_HOST_REDUCTION(simd_min, min(a, b))
METAL_HOST_REDUCTION(simd_and, a &b)
METAL_HOST_REDUCTION(simd_or, a | b)
METAL_HOST_REDUCTION(simd_xor, a ^ b)
#undef METAL_HOST_REDUCTION

#define METAL_HOST_PREFIX(name, start, value) \
    template <class T> T simd_prefix_inclusive_##name(T mine, METAL_HOST_HERE) { \
        const auto all = metal_host::gather("simd_prefix_inclusive_" #name, {file, line}, mine); \
        T a = all[0]; \
        for (unsigned i = 1; i <= metal_host::lane(); i++) { \
            const T b = all[i]; \
            a = T(value); \
        } \
        return a; \
    } \
    template <class T> T simd_prefix_exclusive_##name(T mine, METAL_HOST_HERE) { \
        const auto all = metal_host::gather("simd_prefix_exclusive_" #name, {file, line}, mine); \
        T a = T(start); \
        for (unsigned i = 0; i < metal_host::lane(); i++) { \
            const T b = all[i]; \
            a = T(value); \
        } \
        return a; \
    }
METAL_HOST_PREFIX(sum, 0, a + b)
METAL_HOST_PREFIX(product, 1, a *b)
#undef METAL_HOST_PREFIX

template <class T> T simd_shuffle(T mine, ushort lane, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle", {file, line}, mine);
    return metal_host::taken("simd_shuffle", {file, line}, all, lane);
}
template <class T> T simd_shuffle_xor(T mine, ushort mask, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle_xor", {file, line}, mine, mask);
    return metal_host::taken("simd_shuffle_xor", {file, line}, all, metal_host::lane() ^ mask);
}
template <class T> T simd_broadcast(T mine, ushort lane, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_broadcast", {file, line}, mine, lane);
    return metal_host::taken("simd_broadcast", {file, line}, all, lane);
}
template <class T> T simd_broadcast_first(T mine, METAL_HOST_HERE) {
    return metal_host::gather("simd_broadcast_first", {file, line}, mine)[0];
}
// Past the end a lane keeps its own value (6.9.2: the upper delta lanes, or the lower, stay unchanged).
template <class T> T simd_shuffle_down(T mine, ushort delta, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle_down", {file, line}, mine, delta);
    const unsigned from = metal_host::lane() + delta;
    return from < metal_host::lanes ? metal_host::taken("simd_shuffle_down", {file, line}, all, from) : mine;
}
template <class T> T simd_shuffle_up(T mine, ushort delta, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle_up", {file, line}, mine, delta);
    return metal_host::lane() >= delta ? all[metal_host::lane() - delta] : mine;
}
template <class T> T simd_shuffle_and_fill_down(T mine, T fill, ushort delta, METAL_HOST_HERE) {
    const metal_host::Pair<T, T> both = {mine, fill};
    const auto all = metal_host::gather("simd_shuffle_and_fill_down", {file, line}, both, delta);
    const unsigned from = metal_host::lane() + delta;
    return from < metal_host::lanes ? metal_host::taken("simd_shuffle_and_fill_down", {file, line}, all, from).first
                                    : all[from % metal_host::lanes].second;
}
template <class T> T simd_shuffle_and_fill_up(T mine, T fill, ushort delta, METAL_HOST_HERE) {
    const metal_host::Pair<T, T> both = {mine, fill};
    const auto all = metal_host::gather("simd_shuffle_and_fill_up", {file, line}, both, delta);
    const unsigned lane = metal_host::lane();
    return lane >= delta ? all[lane - delta].first : all[lane + metal_host::lanes - delta].second;
}
template <class T> T simd_shuffle_rotate_down(T mine, ushort delta, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle_rotate_down", {file, line}, mine, delta);
    const unsigned from = (metal_host::lane() + delta) % metal_host::lanes;
    return metal_host::taken("simd_shuffle_rotate_down", {file, line}, all, from);
}
template <class T> T simd_shuffle_rotate_up(T mine, ushort delta, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_shuffle_rotate_up", {file, line}, mine, delta);
    const unsigned from = (metal_host::lane() - delta) % metal_host::lanes;
    return metal_host::taken("simd_shuffle_rotate_up", {file, line}, all, from);
}

// One bit a lane.
struct simd_vote {
    using vote_t = std::uint64_t;
    vote_t bits;
    explicit operator vote_t() const { return bits; }
    bool all() const { return bits == (vote_t{1} << metal_host::lanes) - 1; }
    bool any() const { return bits; }
};
inline simd_vote simd_ballot(bool mine, METAL_HOST_HERE) {
    const auto all = metal_host::gather("simd_ballot", {file, line}, mine);
    simd_vote vote{0};
    for (unsigned i = 0; i < metal_host::lanes; i++)
        vote.bits |= std::uint64_t{metal_host::present(i) && all[i]} << i;
    return vote;
}
inline bool simd_any(bool mine, METAL_HOST_HERE) { return simd_ballot(mine, file, line).bits != 0; }
inline bool simd_all(bool mine, METAL_HOST_HERE) { return simd_ballot(!mine, file, line).bits == 0; }
inline simd_vote simd_active_threads_mask(METAL_HOST_HERE) { return simd_ballot(true, file, line); }
inline bool simd_is_first() { return metal_host::lane() == 0; }

template <class T> T quad_sum(T mine, METAL_HOST_HERE) {
    const auto all = metal_host::gather("quad_sum", {file, line}, mine);
    const unsigned first = metal_host::lane() / 4 * 4;
    return T(T(all[first] + all[first + 2]) + T(all[first + 1] + all[first + 3]));
}
template <class T> T quad_max(T mine, METAL_HOST_HERE) {
    const auto all = metal_host::gather("quad_max", {file, line}, mine);
    const unsigned first = metal_host::lane() / 4 * 4;
    return max(max(all[first], all[first + 1]), max(all[first + 2], all[first + 3]));
}
template <class T> T quad_shuffle_xor(T mine, ushort mask, METAL_HOST_HERE) {
    const auto all = metal_host::gather("quad_shuffle_xor", {file, line}, mine);
    return metal_host::taken("quad_shuffle_xor", {file, line}, all, metal_host::lane() ^ (mask & 3));
}
template <class T> T quad_broadcast(T mine, ushort lane, METAL_HOST_HERE) {
    const auto all = metal_host::gather("quad_broadcast", {file, line}, mine);
    return metal_host::taken("quad_broadcast", {file, line}, all, metal_host::lane() / 4 * 4 + lane);
}

} // namespace metal
