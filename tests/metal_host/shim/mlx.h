// The names that MLX 0.32 puts before every kernel (its utils.h): a kernel may use them, and must not define them.
#pragma once

#include "matrix.h"

using namespace metal;

using bfloat16_t = bfloat;
using float16_t = half;
struct complex64_t {
    float real, imag;
};
inline uint16_t bfloat16_to_uint16(bfloat16_t x) { return as_type<uint16_t>(x); }
inline bfloat16_t uint16_to_bfloat16(uint16_t x) { return as_type<bfloat16_t>(x); }

static constexpr int MAX_REDUCE_SPECIALIZED_DIMS = 4, REDUCE_N_READS = 4, REDUCE_N_WRITES = 4;
static constexpr int SOFTMAX_N_READS = 4, RMS_N_READS = 4, RMS_LOOPED_LIMIT = 4096;
#define MTL_CONST
#define METAL_FUNC inline __attribute__((always_inline))
#define MLX_MTL_PRAGMA_UNROLL

template <class U> struct WorkPerThread {
    static constexpr int n = 8 / sizeof(U);
};
template <class U> struct Limits {
    static constexpr bool floating = metal_host::is_floating<U>;
    static constexpr U finite_max = numeric_limits<U>::max();
    static constexpr U finite_min = floating ? numeric_limits<U>::lowest() : numeric_limits<U>::min();
    static constexpr U max = floating ? numeric_limits<U>::infinity() : finite_max;
    static constexpr U min = floating ? U(-numeric_limits<U>::infinity()) : finite_min;
};

template <class T, class U> inline T ceildiv(T n, U m) { return (n + m - 1) / m; }
inline float log1p(float x) { return std::log1p(x); }
inline bfloat16_t log1p(bfloat16_t x) { return bfloat16_t(std::log1p(float(x))); }
template <class U, class T> inline U cast_to(T x) { return static_cast<U>(x); }
template <bool condition, class T, class U> struct ConditionalType {
    using type = std::conditional_t<condition, T, U>;
};

// Where element `elem` of an array of any shape and strides lies.
template <class Index = int64_t> Index elem_to_loc(Index elem, const int *shape, const int64_t *strides, int ndim) {
    Index at = 0;
    for (int d = ndim - 1; d >= 0 && elem > 0; d--) {
        at += elem % shape[d] * Index(strides[d]);
        elem /= shape[d];
    }
    return at;
}
template <class Index = int64_t> Index elem_to_loc(uint3 elem, const int *shape, const int64_t *strides, int ndim) {
    Index at = elem.x * Index(strides[ndim - 1]) + elem.y * Index(strides[ndim - 2]);
    for (int d = ndim - 3; d >= 0; d--) {
        at += elem.z % shape[d] * Index(strides[d]);
        elem.z /= shape[d];
    }
    return at;
}
template <class Index = int64_t> Index elem_to_loc_1(uint elem, const int64_t &stride) { return elem * Index(stride); }
