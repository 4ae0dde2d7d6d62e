// 8 x 8 matrices of a simdgroup (MSL specification, 2.4 and 6.7).
//
// The specification leaves open which lane holds which element, and has no thread_elements(). By MLX's and others' kernels
// (test_matrix.py) lane l holds two neighbours of one row,
//     row = (l >> 4 & 1) * 4 + (l >> 1 & 3),  columns (l >> 3 & 1) * 4 + (l & 1) * 2 and the next,
// which kernels use through thread_elements().
#pragma once

#include "simdgroup.h"

namespace metal {

template <class T, int Columns, int Rows> class simdgroup_matrix {
    static_assert(Columns == 8 && Rows == 8, "simdgroup matrices are 8 x 8");
    vec<T, 2> mine;

  public:
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal) : mine(T(0)) {
        for (unsigned i = 0; i < 2; i++)
            if (row() == column() + i)
                mine[i] = diagonal;
    }
    static unsigned row() { return (metal_host::lane() >> 4 & 1) * 4 + (metal_host::lane() >> 1 & 3); }
    static unsigned column() { return (metal_host::lane() >> 3 & 1) * 4 + (metal_host::lane() & 1) * 2; }
    static unsigned lane_of(unsigned row, unsigned column) {
        return (row >> 2) * 16 + (column >> 2) * 8 + (row & 3) * 2 + (column >> 1 & 1);
    }
    vec<T, 2> &thread_elements() { return mine; }
    const vec<T, 2> &thread_elements() const { return mine; }
};

template <class T, int C, int R> simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, C, R> m;
    m.thread_elements() = vec<T, 2>(value);
    return m;
}

} // namespace metal

namespace metal_host {

// All lanes must say the same: the specification takes these arguments as uniform.
inline std::uint64_t fingerprint(const volatile void *p, std::uint64_t stride, metal::ulong2 origin, bool transposed) {
    std::uint64_t h = reinterpret_cast<std::uintptr_t>(p);
    const std::uint64_t parts[] = {stride, origin.x, origin.y, transposed};
    for (std::uint64_t x : parts)
        h = (h ^ x) * 0x9e3779b97f4a7c15u;
    return h;
}

} // namespace metal_host

namespace metal {

// Element (row, column) lies at (origin.y + row) * elements_per_row + origin.x + column; transposed, rows are columns.
template <class T, class P>
void simdgroup_load(simdgroup_matrix<T, 8, 8> &m, const P *from, ulong elements_per_row = 8, ulong2 origin = ulong2(0),
                    bool transposed = false, METAL_HOST_HERE) {
    static_assert(std::is_same_v<std::remove_cv_t<P>, T>, "a matrix is loaded from its own type");
    const auto same = metal_host::fingerprint(from, elements_per_row, origin, transposed);
    metal_host::gather("simdgroup_load", {file, line}, char{}, same);
    for (unsigned i = 0; i < 2; i++) {
        const unsigned row = m.row(), column = m.column() + i;
        const ulong down = origin.y + (transposed ? column : row), across = origin.x + (transposed ? row : column);
        m.thread_elements()[i] = from[down * elements_per_row + across];
    }
}
template <class T>
void simdgroup_store(const simdgroup_matrix<T, 8, 8> &m, T *to, ulong elements_per_row = 8, ulong2 origin = ulong2(0),
                     bool transposed = false, METAL_HOST_HERE) {
    const auto same = metal_host::fingerprint(to, elements_per_row, origin, transposed);
    metal_host::gather("simdgroup_store", {file, line}, char{}, same);
    for (unsigned i = 0; i < 2; i++) {
        const unsigned row = m.row(), column = m.column() + i;
        const ulong down = origin.y + (transposed ? column : row), across = origin.x + (transposed ? row : column);
        to[down * elements_per_row + across] = m.thread_elements()[i];
    }
}

// d = a * b + c, each element a chain of fma over k in the order of the launch (documented order: ascending), in
// float, rounded to d's type at the end. The language leaves order and inner precision open.
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                                   const simdgroup_matrix<B, 8, 8> &b, const simdgroup_matrix<C, 8, 8> &c, METAL_HOST_HERE) {
    using M = simdgroup_matrix<D, 8, 8>;
    using Pair = metal_host::Pair<vec<A, 2>, vec<B, 2>>;
    const Pair mine = {a.thread_elements(), b.thread_elements()};
    const auto all = metal_host::gather("simdgroup_multiply_accumulate", {file, line}, mine);
    vec<D, 2> out;
    for (unsigned i = 0; i < 2; i++) {
        float sum = float(c.thread_elements()[i]);
        for (unsigned n = 0, k; n < metal_host::lanes; n++)
            if ((k = metal_host::order()[n]) < 8) {
                const A x = all[M::lane_of(M::row(), k)].first[k & 1];
                const B y = all[M::lane_of(k, M::column())].second[i];
                sum = std::fma(float(x), float(y), sum);
            }
        out[i] = D(sum);
    }
    d.thread_elements() = out;
}
template <class D, class A, class B>
void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                        const simdgroup_matrix<B, 8, 8> &b, METAL_HOST_HERE) {
    simdgroup_multiply_accumulate(d, a, b, simdgroup_matrix<D, 8, 8>(D(0)), file, line);
}
template <class T>
simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8> &a, const simdgroup_matrix<T, 8, 8> &b) {
    simdgroup_matrix<T, 8, 8> d;
    simdgroup_multiply(d, a, b);
    return d;
}

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

// Small matrices of a thread, by column (2.3.1): only what dequantising code needs.
template <class T, int Columns, int Rows> struct matrix {
    vec<T, Rows> columns[Columns];
    matrix() = default;
    explicit matrix(T diagonal) {
        for (int i = 0; i < Columns; i++) {
            columns[i] = vec<T, Rows>(T(0));
            if (i < Rows)
                columns[i][i] = diagonal;
        }
    }
    vec<T, Rows> &operator[](unsigned i) { return columns[i]; }
    const vec<T, Rows> &operator[](unsigned i) const { return columns[i]; }
};
using float4x4 = matrix<float, 4, 4>;
using half4x4 = matrix<half, 4, 4>;
using float2x4 = matrix<float, 2, 4>;
using half2x4 = matrix<half, 2, 4>;

// Atomics (6.15): relaxed is the only order that device memory has.
enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
    T value;
};
using atomic_int = atomic<int>;
using atomic_uint = atomic<uint>;
using atomic_float = atomic<float>;

#define METAL_HOST_ATOMIC(name, result) \
    template <class T> __attribute__((no_sanitize("thread"))) T atomic_##name##_explicit( \
        volatile atomic<T> *p, std::common_type_t<T> x, memory_order, METAL_HOST_HERE) { \
        metal_host::touch_atomic(p, sizeof *p, {file, line}); \
        volatile T *at = &p->value; \
        const T old = *at; \
        *at = T(result); \
        return old; \
    }
METAL_HOST_ATOMIC(fetch_add, old + x)
METAL_HOST_ATOMIC(fetch_sub, old - x)
METAL_HOST_ATOMIC(fetch_max, old < x ? x : old)
METAL_HOST_ATOMIC(fetch_min, x < old ? x : old)
METAL_HOST_ATOMIC(fetch_and, old &x)
METAL_HOST_ATOMIC(fetch_or, old | x)
METAL_HOST_ATOMIC(fetch_xor, old ^ x)
METAL_HOST_ATOMIC(exchange, x)
METAL_HOST_ATOMIC(store, x)
#undef METAL_HOST_ATOMIC
template <class T>
__attribute__((no_sanitize("thread"))) T atomic_load_explicit(const volatile atomic<T> *p, memory_order, METAL_HOST_HERE) {
    metal_host::touch_atomic(p, sizeof *p, {file, line});
    return const_cast<const volatile T &>(p->value);
}

} // namespace metal
