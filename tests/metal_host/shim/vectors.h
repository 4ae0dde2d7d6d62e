// Vectors of two, three and four (MSL specification, 2.2): components, the swizzles in use, and operators by element.
#pragma once

#include "numbers.h"
#include "runtime.h"

namespace metal {

template <class T, int N> struct vec;

} // namespace metal

namespace metal_host {

inline unsigned component(unsigned i, unsigned count) {
    if (__builtin_expect(i >= count, 0))
        no_component(i, count);
    return i;
}

template <class T> struct is_narrow : std::false_type {};
template <class F> struct is_narrow<Narrow<F>> : std::true_type {};
template <class T> constexpr bool is_scalar = std::is_arithmetic_v<T> || is_narrow<T>::value;
template <class T> constexpr bool is_floating = std::is_floating_point_v<T> || is_narrow<T>::value;

// Some components of a vector by name: reads as a vector, and assigns to where it stands.
template <class T, int... I> struct Swizzle {
    static constexpr int count = sizeof...(I), reach = [] {
        int most = 0;
        ((most = I > most ? I : most), ...);
        return most + 1;
    }();
    T v[reach];
    T operator[](unsigned i) const { return metal::vec<T, count>(*this)[i]; }
    operator metal::vec<T, count>() const { return metal::vec<T, count>(v[I]...); }
    Swizzle &operator=(metal::vec<T, count> x) {
        int from = 0;
        ((v[I] = x[from++]), ...);
        return *this;
    }
    Swizzle &operator=(const Swizzle &x) { return *this = metal::vec<T, count>(x); }
    template <class O> Swizzle &operator+=(const O &x) { return *this = metal::vec<T, count>(*this) + x; }
    template <class O> Swizzle &operator-=(const O &x) { return *this = metal::vec<T, count>(*this) - x; }
    template <class O> Swizzle &operator*=(const O &x) { return *this = metal::vec<T, count>(*this) * x; }
};

// What is a vector, or turns into one.
template <class X> struct vector_like {
    static constexpr int count = 0;
    using element = void;
};
template <class T, int N> struct vector_like<metal::vec<T, N>> {
    static constexpr int count = N;
    using element = T;
};
template <class T, int... I> struct vector_like<Swizzle<T, I...>> {
    static constexpr int count = sizeof...(I);
    using element = T;
};

// The components of a swizzle, 0 for all else.
template <class X> struct swizzle_count : std::integral_constant<int, 0> {
};
template <class T, int... I> struct swizzle_count<Swizzle<T, I...>> : std::integral_constant<int, sizeof...(I)> {};
template <class X> constexpr int swizzles = swizzle_count<X>::value;
template <class X, class T, int N>
constexpr bool other_swizzle = swizzles<X> == N && !std::is_same_v<typename vector_like<X>::element, T>;

template <class A> constexpr int parts = is_scalar<A> ? 1 : vector_like<A>::count;

// The vector type of an operation on A and B: one of them may be a scalar, which is widened.
template <class A, class B, int N = vector_like<A>::count, int M = vector_like<B>::count> struct joint {};
template <class A, class B, int N> struct joint<A, B, N, N> {
    using type = metal::vec<typename vector_like<A>::element, N>;
    static_assert(std::is_same_v<typename vector_like<A>::element, typename vector_like<B>::element>,
                  "vectors of different types do not mix (MSL specification, 2.2)");
};
template <class A, class B> struct joint<A, B, 0, 0> {};
template <class A, class B, int N>
struct joint<A, B, N, 0> : std::enable_if<is_scalar<B>, metal::vec<typename vector_like<A>::element, N>> {};
template <class A, class B, int N>
struct joint<A, B, 0, N> : std::enable_if<is_scalar<A>, metal::vec<typename vector_like<B>::element, N>> {};
template <class A, class B> using joint_t = typename joint<A, B>::type;
template <class A> using own_t = metal::vec<typename vector_like<A>::element, vector_like<A>::count>;

// f of each element of some vectors.
template <class F, class T, int N, class... Rest> auto each(F f, const metal::vec<T, N> &first, const Rest &...rest) {
    metal::vec<decltype(f(first[0], rest[0]...)), N> out;
    for (int i = 0; i < N; i++)
        out[i] = f(first[i], rest[i]...);
    return out;
}

} // namespace metal_host

namespace metal {

#define METAL_HOST_VEC(N, ALIGN) \
    using element_type = T; \
    vec() = default; \
    vec(const vec &x) { assign(x); } \
    vec &operator=(const vec &x) { return assign(x); } \
    template <class S, std::enable_if_t<metal_host::is_scalar<S>, int> = 0> vec(S x) { \
        for (int i = 0; i < N; i++) \
            v[i] = T(x); \
    } \
    template <class U, std::enable_if_t<!std::is_same_v<U, T>, int> = 0> explicit vec(const vec<U, N> &x) { \
        for (int i = 0; i < N; i++) \
            v[i] = T(x[i]); \
    } \
    template <class S, std::enable_if_t<metal_host::other_swizzle<S, T, N>, int> = 0>                                  \
    explicit vec(const S &x) : vec(metal_host::own_t<S>(x)) {} \
    template <class A, class B, class... C, \
              std::enable_if_t<((metal_host::parts<A> + metal_host::parts<B>) + ... + metal_host::parts<C>) == N, int> = 0> \
    vec(const A &a, const B &b, const C &...c) { \
        int at = 0; \
        put(at, a), put(at, b), (put(at, c), ...); \
    } \
    T &operator[](unsigned i) { return v[metal_host::component(i, N)]; } \
    const T &operator[](unsigned i) const { return v[metal_host::component(i, N)]; } \
 \
  private: \
    vec &assign(const vec &x) { \
        for (int i = 0; i < N; i++) \
            v[i] = x.v[i]; \
        return *this; \
    } \
    template <class A> void put(int &at, const A &a) { \
        if constexpr (metal_host::is_scalar<A>) \
            v[at++] = T(a); \
        else { \
            const metal_host::own_t<A> x = a; \
            for (int i = 0; i < metal_host::vector_like<A>::count; i++) \
                v[at++] = T(x[i]); \
        } \
    }

#define METAL_HOST_S(a, b) metal_host::Swizzle<T, a, b>
#define METAL_HOST_S3(a, b, c) metal_host::Swizzle<T, a, b, c>
#define METAL_HOST_S4(a, b, c, d) metal_host::Swizzle<T, a, b, c, d>
#define METAL_HOST_PAIRS2 \
    METAL_HOST_S(0, 0) xx, rr; \
    METAL_HOST_S(0, 1) xy, rg;                                                                                    \
    METAL_HOST_S(1, 0) yx, gr; \
    METAL_HOST_S(1, 1) yy, gg;
#define METAL_HOST_PAIRS3 \
    METAL_HOST_S(0, 2) xz, rb; \
    METAL_HOST_S(1, 2) yz, gb; \
    METAL_HOST_S(2, 0) zx; \
    METAL_HOST_S(2, 1) zy; \
    METAL_HOST_S(2, 2) zz; \
    METAL_HOST_S3(0, 1, 2) xyz, rgb; \
    METAL_HOST_S3(2, 1, 0) zyx, bgr; \
    METAL_HOST_S3(0, 0, 0) xxx;
#define METAL_HOST_PAIRS4 \
    METAL_HOST_S(0, 3) xw; \
    METAL_HOST_S(1, 3) yw, ga; \
    METAL_HOST_S(2, 3) zw, ba;                                                                                    \
    METAL_HOST_S(3, 2) wz; \
    METAL_HOST_S(3, 3) ww; \
    METAL_HOST_S3(1, 2, 3) yzw; \
    METAL_HOST_S4(0, 1, 2, 3) xyzw, rgba; \
    METAL_HOST_S4(3, 2, 1, 0) wzyx, abgr; \
    METAL_HOST_S4(0, 1, 0, 1) xyxy; \
    METAL_HOST_S4(2, 3, 2, 3) zwzw; \
    METAL_HOST_S4(0, 0, 1, 1) xxyy; \
    METAL_HOST_S4(0, 2, 1, 3) xzyw; \
    METAL_HOST_S4(0, 0, 0, 0) xxxx;

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
    union {
        T v[2];
        struct {
            T x, y;
        };
        struct {
            T r, g;
        };
        METAL_HOST_PAIRS2
    };
    METAL_HOST_VEC(2, 2)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
    union {
        T v[3];
        struct {
            T x, y, z;
        };
        struct {
            T r, g, b;
        };
        METAL_HOST_PAIRS2 METAL_HOST_PAIRS3
    };
    METAL_HOST_VEC(3, 4)
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
    union {
        T v[4];
        struct {
            T x, y, z, w;
        };
        struct {
            T r, g, b, a;
        };
        METAL_HOST_PAIRS2 METAL_HOST_PAIRS3 METAL_HOST_PAIRS4
    };
    METAL_HOST_VEC(4, 4)
};

// A vector without the alignment: only loads, stores and elements.
template <class T, int N> struct packed_vec {
    T v[N];
    packed_vec() = default;
    packed_vec(const vec<T, N> &x) {
        for (int i = 0; i < N; i++)
            v[i] = x[i];
    }
    operator vec<T, N>() const {
        vec<T, N> x;
        for (int i = 0; i < N; i++)
            x[i] = v[i];
        return x;
    }
    T &operator[](unsigned i) { return v[metal_host::component(i, N)]; }
    const T &operator[](unsigned i) const { return v[metal_host::component(i, N)]; }
};

} // namespace metal

namespace metal_host {

#define METAL_HOST_BINARY(op, type) \
    template <class A, class B, class V = joint_t<A, B>>                                                               \
    metal::vec<type, vector_like<V>::count> operator op(const A &a, const B &b) {                                      \
        using T = typename V::element_type; \
        const V x = a, y = b; \
        return each([](T p, T q) { return type(p op q); }, x, y); \
    }
#define METAL_HOST_ARITHMETIC(op) \
    METAL_HOST_BINARY(op, T_of<V>) \
    template <class T, int N, class B> metal::vec<T, N> &operator op##=(metal::vec<T, N> &a, const B &b) { \
        return a = a op b; \
    }
template <class V> using T_of = typename V::element_type;
} // namespace metal_host

// Found by argument-dependent lookup for vectors and swizzles alike.
namespace metal {
using metal_host::each;
using metal_host::joint_t;
using metal_host::T_of;
using metal_host::vector_like;
METAL_HOST_ARITHMETIC(+)
METAL_HOST_ARITHMETIC(-)
METAL_HOST_ARITHMETIC(*)
METAL_HOST_ARITHMETIC(/)
METAL_HOST_ARITHMETIC(%)
METAL_HOST_ARITHMETIC(&)
METAL_HOST_ARITHMETIC(|)
METAL_HOST_ARITHMETIC(^)
METAL_HOST_ARITHMETIC(<<)
METAL_HOST_ARITHMETIC(>>)
METAL_HOST_BINARY(<, bool)
METAL_HOST_BINARY(>, bool)
METAL_HOST_BINARY(<=, bool)
METAL_HOST_BINARY(>=, bool)
METAL_HOST_BINARY(==, bool)
METAL_HOST_BINARY(!=, bool)
METAL_HOST_BINARY(&&, bool)
METAL_HOST_BINARY(||, bool)
template <class T, int N> vec<T, N> operator-(const vec<T, N> &a) {
    return each([](T x) { return T(-x); }, a);
}
template <class T, int N> vec<T, N> operator~(const vec<T, N> &a) {
    return each([](T x) { return T(~x); }, a);
}
template <class T, int N> vec<bool, N> operator!(const vec<T, N> &a) {
    return each([](T x) { return !x; }, a);
}
} // namespace metal

namespace metal_host {
using metal::operator+;
using metal::operator-;
using metal::operator*;
using metal::operator/;
using metal::operator%;
using metal::operator&;
using metal::operator|;
using metal::operator^;
using metal::operator<<;
using metal::operator>>;
using metal::operator<;
using metal::operator>;
using metal::operator<=;
using metal::operator>=;
using metal::operator==;
using metal::operator!=;
} // namespace metal_host

#define METAL_HOST_NAMES(T, name) \
    using name##2 = metal::vec<T, 2>; \
    using name##3 = metal::vec<T, 3>; \
    using name##4 = metal::vec<T, 4>;
#define METAL_HOST_PACKED(T, name) \
    METAL_HOST_NAMES(T, name) \
    using packed_##name##2 = metal::packed_vec<T, 2>; \
    using packed_##name##3 = metal::packed_vec<T, 3>; \
    using packed_##name##4 = metal::packed_vec<T, 4>;
using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
namespace metal {
METAL_HOST_NAMES(bool, bool)
METAL_HOST_PACKED(signed char, char)
METAL_HOST_PACKED(uchar, uchar)
METAL_HOST_PACKED(short, short)
METAL_HOST_PACKED(ushort, ushort)
METAL_HOST_PACKED(int, int)
METAL_HOST_PACKED(uint, uint)
METAL_HOST_PACKED(long, long)
METAL_HOST_PACKED(ulong, ulong)
METAL_HOST_PACKED(half, half)
METAL_HOST_PACKED(bfloat, bfloat)
METAL_HOST_PACKED(float, float)
} // namespace metal
using namespace metal;
#undef METAL_HOST_NAMES
#undef METAL_HOST_PACKED

// The same bits as another type of the same size.
template <class To, class From> To as_type(const From &from) {
    if constexpr (metal_host::swizzles<From> > 0) {
        return as_type<To>(metal_host::own_t<From>(from));
    } else {
        static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
        To to;
        __builtin_memcpy(static_cast<void *>(&to), &from, sizeof to);
        return to;
    }
}
