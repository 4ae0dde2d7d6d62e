// half and bfloat: 16 bits each, every operation rounded once to nearest even (MSL specification, 2.1, 8.2 and 8.6).
//
// Sums, products and quotients of two such numbers are formed in float, which has more than twice their digits plus
// two, so that rounding a second time changes nothing; fma goes through double, rounded to odd.
#pragma once

#include "runtime.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace metal_host {

template <class To, class From> constexpr To bits(const From &from) { return __builtin_bit_cast(To, from); }

// The float that keeps what a later rounding to fewer digits must know: inexact results get an odd last digit.
constexpr float to_odd(double x) {
    const float f = float(x);
    if (double(f) == x || x != x || f - f != 0 || (bits<std::uint32_t>(f) & 1))
        return f;
    const bool up = (double(f) < x) == (x > 0);
    return bits<float>(bits<std::uint32_t>(f) + (up ? 1u : -1u));
}

constexpr double sum_to_odd(double a, double b) {
    const double s = a + b;
    if (s - s != 0)
        return s;
    const double back = s - a, error = (a - (s - back)) + (b - back);
    if (error == 0 || (bits<std::uint64_t>(s) & 1))
        return s;
    const bool up = (error > 0) == (s > 0);
    return bits<double>(bits<std::uint64_t>(s) + (up ? std::uint64_t{1} : ~std::uint64_t{0}));
}

struct Binary16 {
    static constexpr std::uint16_t round(float x) {
        const std::uint32_t b = bits<std::uint32_t>(x), sign = b >> 16 & 0x8000, a = b & 0x7fffffff;
        if (a > 0x7f800000)
            return std::uint16_t(sign | 0x7e00);
        if (a >= 0x47800000) // 65536 and beyond
            return std::uint16_t(sign | 0x7c00);
        if (a < 0x38800000) { // below the least normal number: a fixed step of 2^-24, found by adding 0.5
            const float f = bits<float>(a) + 0.5f;
            return std::uint16_t(sign | (bits<std::uint32_t>(f) - 0x3f000000));
        }
        return std::uint16_t(sign | ((a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13));
    }
    static constexpr float widen(std::uint16_t h) {
        const std::uint32_t sign = std::uint32_t(h & 0x8000) << 16, a = h & 0x7fff;
        if (a >= 0x7c00)
            return bits<float>(sign | 0x7f800000 | (a & 0x3ff) << 13);
        if (a < 0x400) {
            const float f = float(a) * 0x1p-24f;
            return bits<float>(sign | bits<std::uint32_t>(f));
        }
        return bits<float>(sign | ((a << 13) + 0x38000000));
    }
};

struct Brain16 {
    static constexpr std::uint16_t round(float x) {
        const std::uint32_t b = bits<std::uint32_t>(x);
        if ((b & 0x7fffffff) > 0x7f800000)
            return std::uint16_t(b >> 16 | 0x40);
        return std::uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
    static constexpr float widen(std::uint16_t h) { return bits<float>(std::uint32_t{h} << 16); }
};

template <class Format> struct Narrow {
    std::uint16_t raw;

    Narrow() = default;
    template <class T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
    constexpr Narrow(T x) : raw(Format::round(sizeof(T) < 4 || std::is_same_v<T, float> ? float(x) : to_odd(double(x)))) {}
    template <class Other> constexpr explicit Narrow(Narrow<Other> x) : raw(Format::round(float(x))) {}

    constexpr operator float() const { return Format::widen(raw); }
    template <class T, std::enable_if_t<std::is_integral_v<T> && !std::is_same_v<T, bool>, int> = 0>
    constexpr explicit operator T() const {
        return T(float(*this));
    }
    constexpr explicit operator bool() const { return raw & 0x7fff; }

    constexpr Narrow operator-() const { return from_bits(raw ^ 0x8000); }
    constexpr Narrow operator+() const { return *this; }
    static constexpr Narrow from_bits(unsigned b) {
        Narrow n{};
        n.raw = std::uint16_t(b);
        return n;
    }
    template <class T> constexpr Narrow &operator+=(T x) { return *this = Narrow(*this + x); }
    template <class T> constexpr Narrow &operator-=(T x) { return *this = Narrow(*this - x); }
    template <class T> constexpr Narrow &operator*=(T x) { return *this = Narrow(*this * x); }
    template <class T> constexpr Narrow &operator/=(T x) { return *this = Narrow(*this / x); }
    constexpr Narrow &operator++() { return *this += Narrow(1); }
    constexpr Narrow &operator--() { return *this -= Narrow(1); }
};

// What an operation on a narrow number and another gives: with a float, a float; with an integer, the narrow one.
template <class A, class B> struct mixed {};
template <class F> struct mixed<Narrow<F>, Narrow<F>> { using type = Narrow<F>; };
template <class F> struct mixed<Narrow<F>, float> { using type = float; };
template <class F> struct mixed<float, Narrow<F>> { using type = float; };
template <class F> struct mixed<Narrow<F>, double> { using type = float; };
template <class F> struct mixed<double, Narrow<F>> { using type = float; };
template <class F, class T> struct mixed_integer : std::enable_if<std::is_integral_v<T>, Narrow<F>> {};
template <class F> struct mixed<Narrow<F>, bool> : mixed_integer<F, bool> {};
#define METAL_HOST_INTEGER(T) \
    template <class F> struct mixed<Narrow<F>, T> : mixed_integer<F, T> {}; \
    template <class F> struct mixed<T, Narrow<F>> : mixed_integer<F, T> {};
METAL_HOST_INTEGER(signed char)
METAL_HOST_INTEGER(char)
METAL_HOST_INTEGER(unsigned char)
METAL_HOST_INTEGER(short)
METAL_HOST_INTEGER(unsigned short)
METAL_HOST_INTEGER(int)
METAL_HOST_INTEGER(unsigned)
METAL_HOST_INTEGER(long)
METAL_HOST_INTEGER(unsigned long)
METAL_HOST_INTEGER(long long)
METAL_HOST_INTEGER(unsigned long long)
#undef METAL_HOST_INTEGER

// What arithmetic takes a number for, and gives: a subnormal half is zero where the launch says so (8.1), as a conversion's
// never is (8.6). Floats and bfloats, which have a float's range, are the processor's to flush.
constexpr float taken_for(float x) { return x; }
constexpr float taken_for(Narrow<Brain16> x) { return float(x); }
constexpr float taken_for(Narrow<Binary16> x) {
    const bool subnormal = (x.raw & 0x7c00) == 0;
    return subnormal && !__builtin_is_constant_evaluated() && launch && launch->flush ? 0.0f : float(x);
}
template <class R> constexpr R given(R x) {
    if constexpr (std::is_same_v<R, Narrow<Binary16>>)
        return R(taken_for(x));
    else
        return x;
}

#define METAL_HOST_OPERATOR(op) \
    template <class A, class B, class R = typename mixed<A, B>::type> constexpr R operator op(A a, B b) { \
        return given(R(taken_for(R(a)) op taken_for(R(b)))); \
    }
METAL_HOST_OPERATOR(+)
METAL_HOST_OPERATOR(-)
METAL_HOST_OPERATOR(*)
METAL_HOST_OPERATOR(/)
#undef METAL_HOST_OPERATOR
#define METAL_HOST_COMPARISON(op) \
    template <class A, class B, class R = typename mixed<A, B>::type> constexpr bool operator op(A a, B b) { \
        return float(R(a)) op float(R(b)); \
    }
METAL_HOST_COMPARISON(<)
METAL_HOST_COMPARISON(>)
METAL_HOST_COMPARISON(<=)
METAL_HOST_COMPARISON(>=)
METAL_HOST_COMPARISON(==)
METAL_HOST_COMPARISON(!=)
#undef METAL_HOST_COMPARISON

template <class F> Narrow<F> fused(Narrow<F> a, Narrow<F> b, Narrow<F> c) {
    // The product of two is exact in double, and rounding the sum to odd makes the last rounding the only one.
    const double x = taken_for(a), y = taken_for(b), z = taken_for(c);
    return given(Narrow<F>(to_odd(sum_to_odd(x * y, z))));
}
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }

} // namespace metal_host

using half = metal_host::Narrow<metal_host::Binary16>;
using bfloat = metal_host::Narrow<metal_host::Brain16>;
constexpr half operator""h(long double x) { return half(float(x)); }
constexpr half operator""H(long double x) { return half(float(x)); }
constexpr bfloat operator""bf(long double x) { return bfloat(float(x)); }
