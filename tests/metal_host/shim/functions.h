// Numeric functions (MSL specification, 6.2 to 6.5 and 6.8), for scalars and by element for vectors.
#pragma once

#include "vectors.h"

#include <limits>

namespace metal_host {

// The common type of the scalar arguments of a function.
template <class A, class B> struct common {
    using type = std::common_type_t<A, B>;
};
template <class F, class B> struct common<Narrow<F>, B> {
    using type = typename mixed<Narrow<F>, B>::type;
};
template <class A, class F> struct common<A, Narrow<F>> {
    using type = typename mixed<A, Narrow<F>>::type;
};
template <class F, class G> struct common<Narrow<F>, Narrow<G>> {
    using type = typename mixed<Narrow<F>, Narrow<G>>::type;
};
template <> struct common<float, double> {
    using type = float;
};
template <> struct common<double, float> {
    using type = float;
};
template <class A, class B> using common_t = typename common<A, B>::type;
template <class A> using floated_t = std::conditional_t<std::is_arithmetic_v<A>, float, A>;

// Calls f on scalars brought to one type, or on each element of vectors.
template <class F, class A> auto mapped(F f, const A &a) {
    if constexpr (is_scalar<A>)
        return f(a);
    else
        return each(f, own_t<A>(a));
}
template <class F, class A, class B> auto mapped(F f, const A &a, const B &b) {
    if constexpr (is_scalar<A> && is_scalar<B>) {
        using T = common_t<A, B>;
        return f(T(a), T(b));
    } else {
        using V = joint_t<A, B>;
        return each(f, V(a), V(b));
    }
}
template <class F, class A, class B, class C> auto mapped(F f, const A &a, const B &b, const C &c) {
    if constexpr (is_scalar<A> && is_scalar<B> && is_scalar<C>) {
        using T = common_t<common_t<A, B>, C>;
        return f(T(a), T(b), T(c));
    } else {
        using Last = std::conditional_t<is_scalar<B>, own_t<C>, own_t<B>>;
        using V = joint_t<std::conditional_t<is_scalar<A>, Last, own_t<A>>, B>;
        return each(f, V(a), V(b), V(c));
    }
}

// A GPU's exp or log may be some units of the last place off (MSL specification, 8.4), always the
// same for the same argument: so is this, by as many units as the launch asks, up or down as a hash of x says.
inline float rounded(double value, float x) {
    const float near = float(value);
    const std::uint32_t ulps = launch->ulps;
    if (!ulps || near == 0 || near - near != 0)
        return near;
    const std::uint32_t hash = (bits<std::uint32_t>(x) ^ 0x9e3779b9u) * 0x85ebca6bu;
    return bits<float>(bits<std::uint32_t>(near) + (hash >> 8) % (2 * ulps + 1) - ulps);
}

} // namespace metal_host

namespace metal {

#define METAL_HOST_UNARY(name, value) \
    template <class A, std::enable_if_t<metal_host::is_scalar<A> || (metal_host::vector_like<A>::count > 0), int> = 0> \
    auto name(const A &a) { \
        return metal_host::mapped( \
            [](auto q) { \
                using T = metal_host::floated_t<decltype(q)>; \
                const float x = float(q); \
                return T(value); \
            }, \
            a); \
    }
// The host's own functions in double, rounded once, or as far off as the launch asks.
#define METAL_HOST_TRANSCENDENTAL \
    METAL_HOST_UNARY(exp, metal_host::rounded(std::exp(double(x)), x)) \
    METAL_HOST_UNARY(exp2, metal_host::rounded(std::exp2(double(x)), x)) \
    METAL_HOST_UNARY(exp10, metal_host::rounded(std::pow(10.0l, double(x)), x)) \
    METAL_HOST_UNARY(log, metal_host::rounded(std::log(double(x)), x)) \
    METAL_HOST_UNARY(log2, metal_host::rounded(std::log2(double(x)), x)) \
    METAL_HOST_UNARY(log10, metal_host::rounded(std::log10(double(x)), x)) \
    METAL_HOST_UNARY(sqrt, std::sqrt(x)) \
    METAL_HOST_UNARY(rsqrt, metal_host::rounded(1 / std::sqrt(double(x)), x)) \
    METAL_HOST_UNARY(sin, metal_host::rounded(std::sin(double(x)), x)) \
    METAL_HOST_UNARY(cos, metal_host::rounded(std::cos(double(x)), x)) \
    METAL_HOST_UNARY(tan, metal_host::rounded(std::tan(double(x)), x)) \
    METAL_HOST_UNARY(tanh, metal_host::rounded(std::tanh(double(x)), x)) \
    METAL_HOST_UNARY(sinh, metal_host::rounded(std::sinh(double(x)), x)) \
    METAL_HOST_UNARY(cosh, metal_host::rounded(std::cosh(double(x)), x)) \
    METAL_HOST_UNARY(atan, metal_host::rounded(std::atan(double(x)), x)) \
    METAL_HOST_UNARY(asin, metal_host::rounded(std::asin(double(x)), x)) \
    METAL_HOST_UNARY(acos, metal_host::rounded(std::acos(double(x)), x)) \
    METAL_HOST_UNARY(floor, std::floor(x)) \
    METAL_HOST_UNARY(ceil, std::ceil(x)) \
    METAL_HOST_UNARY(trunc, std::trunc(x)) \
    METAL_HOST_UNARY(round, std::round(x)) \
    METAL_HOST_UNARY(rint, std::nearbyint(x)) \
    METAL_HOST_UNARY(fabs, std::fabs(x)) \
    METAL_HOST_UNARY(fract, std::fmin(x - std::floor(x), 0x1.fffffep-1f))
METAL_HOST_TRANSCENDENTAL
namespace precise {
METAL_HOST_TRANSCENDENTAL
}
namespace fast {
METAL_HOST_TRANSCENDENTAL
}
#undef METAL_HOST_TRANSCENDENTAL

#define METAL_HOST_TEST(name, value) \
    template <class A> auto name(const A &a) { \
        return metal_host::mapped( \
            [](auto q) { \
                const float x = float(q); \
                return bool(value); \
            }, \
            a); \
    }
METAL_HOST_TEST(isnan, std::isnan(x))
METAL_HOST_TEST(isinf, std::isinf(x))
METAL_HOST_TEST(isfinite, std::isfinite(x))
METAL_HOST_TEST(signbit, std::signbit(x))
#undef METAL_HOST_TEST

template <class A> auto abs(const A &a) {
    return metal_host::mapped(
        [](auto x) {
            using T = decltype(x);
            return x < T(0) ? T(-x) : x == T(0) ? T(0) : x; // of -0 too
        },
        a);
}
template <class A> auto sign(const A &a) {
    return metal_host::mapped(
        [](auto x) {
            using T = decltype(x);
            return x > T(0) ? T(1) : x < T(0) ? T(-1) : x == x ? x : T(0);
        },
        a);
}

#define METAL_HOST_BINARY_FUNCTION(name, value) \
    template <class A, class B> auto name(const A &a, const B &b) { \
        return metal_host::mapped( \
            [](auto x, auto y) { \
                using T = decltype(x); \
                return T(value); \
            }, \
            a, b); \
    }
// If one is not a number the other is the result (6.5, fmin and fmax).
METAL_HOST_BINARY_FUNCTION(min, y < x || x != x ? y : x)
METAL_HOST_BINARY_FUNCTION(max, x < y || x != x ? y : x)
METAL_HOST_BINARY_FUNCTION(fmin, y < x || x != x ? y : x)
METAL_HOST_BINARY_FUNCTION(fmax, x < y || x != x ? y : x)
METAL_HOST_BINARY_FUNCTION(fmod, std::fmod(float(x), float(y)))
METAL_HOST_BINARY_FUNCTION(pow, float(std::pow(double(float(x)), double(float(y)))))
METAL_HOST_BINARY_FUNCTION(powr, float(std::pow(double(float(x)), double(float(y)))))
METAL_HOST_BINARY_FUNCTION(atan2, float(std::atan2(double(float(x)), double(float(y)))))
METAL_HOST_BINARY_FUNCTION(copysign, std::copysign(float(x), float(y)))
METAL_HOST_BINARY_FUNCTION(step, y < x ? 0 : 1)
METAL_HOST_BINARY_FUNCTION(mulhi, (std::int64_t(x) * std::int64_t(y)) >> (8 * sizeof(T)))
METAL_HOST_BINARY_FUNCTION(rotate, (x << (y & T(8 * sizeof(T) - 1))) | (x >> (-y & T(8 * sizeof(T) - 1))))
namespace precise {
using metal::fmax;
using metal::fmin;
using metal::max;
using metal::min;
using metal::pow;
} // namespace precise
namespace fast {
using metal::fmax;
using metal::fmin;
using metal::max;
using metal::min;
using metal::pow;
} // namespace fast

template <class A, class B, class C> auto fma(const A &a, const B &b, const C &c) {
    return metal_host::mapped(
        [](auto x, auto y, auto z) {
            using T = metal_host::floated_t<decltype(x)>;
            return metal_host::fused(T(x), T(y), T(z));
        },
        a, b, c);
}
template <class A, class B, class C> auto mad(const A &a, const B &b, const C &c) { return a * b + c; }
template <class A, class B, class C> auto mix(const A &x, const B &y, const C &a) { return x + (y - x) * a; }
template <class A, class B, class C> auto clamp(const A &x, const B &low, const C &high) { return min(max(x, low), high); }
template <class A> auto saturate(const A &x) {
    return metal_host::mapped([](auto q) { using T = decltype(q); return q > T(0) ? q < T(1) ? q : T(1) : T(0); }, x);
}
template <class A, class B, class C> auto mad24(A a, B b, C c) { return a * b + c; }
template <class A, class B> auto mul24(A a, B b) { return a * b; }
template <class A> A divide(A a, A b) { return a / b; }

template <class T> int ilogb(T x) { return std::ilogb(float(x)); }
template <class T> T ldexp(T x, int k) { return T(std::ldexp(float(x), k)); }
template <class T> T frexp(T x, int &k) { return T(std::frexp(float(x), &k)); }
template <class T> T modf(T x, T &whole) {
    whole = trunc(x);
    return copysign(isinf(x) ? T(0) : T(x - whole), x);
}
inline float sincos(float x, float &c) {
    c = cos(x);
    return sin(x);
}

template <class A> auto popcount(const A &a) {
    return metal_host::mapped(
        [](auto x) {
            using T = decltype(x);
            return T(__builtin_popcountll(std::make_unsigned_t<T>(x)));
        },
        a);
}
template <class A> auto clz(const A &a) {
    return metal_host::mapped(
        [](auto x) {
            using T = decltype(x);
            constexpr int digits = 8 * sizeof(T);
            return x ? T(__builtin_clzll(std::make_unsigned_t<T>(x)) - (64 - digits)) : T(digits);
        },
        a);
}
template <class A> auto ctz(const A &a) {
    return metal_host::mapped([](auto x) { using T = decltype(x); return x ? T(__builtin_ctzll(x)) : T(8 * sizeof(T)); }, a);
}
template <class A> auto reverse_bits(const A &a) {
    return metal_host::mapped(
        [](auto x) {
            using T = decltype(x);
            T y = 0;
            for (unsigned i = 0; i < 8 * sizeof(T); i++)
                y = T(y << 1 | (x >> i & 1));
            return y;
        },
        a);
}
template <class T> T extract_bits(T x, unsigned offset, unsigned n) {
    if (!n)
        return 0;
    const unsigned spare = 8 * sizeof(T) - n;
    return T(T(x << (spare - offset)) >> spare);
}
template <class T> T insert_bits(T base, T insert, unsigned offset, unsigned n) {
    using U = std::make_unsigned_t<T>;
    const U mask = n == 8 * sizeof(T) ? ~U(0) : U(((U(1) << n) - 1) << offset);
    return T((U(base) & ~mask) | (U(insert) << offset & mask));
}

template <class A, class B> auto dot(const A &a, const B &b) {
    const metal_host::joint_t<A, B> x = a, y = b;
    auto sum = x[0] * y[0];
    for (int i = 1; i < metal_host::vector_like<metal_host::joint_t<A, B>>::count; i++)
        sum = sum + x[i] * y[i];
    return decltype(x[0] * y[0])(sum);
}
template <class A> auto length_squared(const A &a) { return dot(a, a); }
template <class A> auto length(const A &a) { return sqrt(dot(a, a)); }

template <int N> bool any(vec<bool, N> v) {
    bool b = false;
    for (int i = 0; i < N; i++)
        b |= v[i];
    return b;
}
template <int N> bool all(vec<bool, N> v) {
    bool b = true;
    for (int i = 0; i < N; i++)
        b &= v[i];
    return b;
}
inline bool any(bool b) { return b; }
inline bool all(bool b) { return b; }
template <class A, class B> auto select(const A &a, const B &b, bool c) {
    using T = metal_host::common_t<A, B>;
    return c ? T(b) : T(a);
}
template <class T, int N> vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<bool, N> c) {
    for (int i = 0; i < N; i++)
        if (c[i])
            a[i] = b[i];
    return a;
}

template <class T> struct numeric_limits : std::numeric_limits<T> {};
template <> struct numeric_limits<half> {
    static constexpr bool is_specialized = true;
    static constexpr half max() { return half::from_bits(0x7bff); }
    static constexpr half lowest() { return half::from_bits(0xfbff); }
    static constexpr half min() { return half::from_bits(0x0400); }
    static constexpr half infinity() { return half::from_bits(0x7c00); }
    static constexpr half quiet_NaN() { return half::from_bits(0x7e00); }
    static constexpr half epsilon() { return half::from_bits(0x1400); }
};
template <> struct numeric_limits<bfloat> {
    static constexpr bool is_specialized = true;
    static constexpr bfloat max() { return bfloat::from_bits(0x7f7f); }
    static constexpr bfloat lowest() { return bfloat::from_bits(0xff7f); }
    static constexpr bfloat min() { return bfloat::from_bits(0x0080); }
    static constexpr bfloat infinity() { return bfloat::from_bits(0x7f80); }
    static constexpr bfloat quiet_NaN() { return bfloat::from_bits(0x7fc0); }
    static constexpr bfloat epsilon() { return bfloat::from_bits(0x3c00); }
};

using std::conditional;
using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::integral_constant;
using std::is_floating_point;
using std::is_integral;
using std::is_same;
using std::is_same_v;
using std::make_unsigned_t;
using std::remove_cv_t;
using std::true_type;
using std::false_type;

} // namespace metal

#undef INFINITY
#undef NAN
#undef HUGE_VALF
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define HALF_MAX (metal::numeric_limits<half>::max())
#define MAXFLOAT 0x1.fffffep127f
#undef M_PI_F
#define M_PI_F 3.14159274101257324219f
#define M_E_F 2.71828174591064453125f
#define M_LOG2E_F 1.44269502162933349609f
#define M_LN2_F 0.693147182464599609375f
#define M_SQRT2_F 1.41421353816986083984f
#define M_SQRT1_2_F 0.707106769084930419922f
#define M_2_SQRTPI_F 1.12837922573089599609f
