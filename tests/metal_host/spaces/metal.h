// The Metal language for clang's parser: pointers to device, constant and threadgroup memory are of types of their own,
// none turns into another, and a pointer without a space is one to a thread's own memory. Nothing here ever runs.
typedef _Float16 half;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef half float16_t;
typedef __bf16 bfloat;
typedef bfloat bfloat16_t;

#define VECTORS(T, name) \
    typedef T name##2 __attribute__((ext_vector_type(2))); \
    typedef T name##3 __attribute__((ext_vector_type(3))); \
    typedef T name##4 __attribute__((ext_vector_type(4)));
VECTORS(int, bool) // the parser has no vectors of bool; comparisons give it those of int
VECTORS(char, char)
VECTORS(uchar, uchar)
VECTORS(short, short)
VECTORS(ushort, ushort)
VECTORS(int, int)
VECTORS(uint, uint)
VECTORS(long, long)
VECTORS(ulong, ulong)
VECTORS(half, half)
VECTORS(bfloat, bfloat)
VECTORS(float, float)
#define PACKED(T, name) \
    typedef name##2 packed_##name##2 __attribute__((aligned(sizeof(T)))); \
    typedef name##4 packed_##name##4 __attribute__((aligned(sizeof(T))));
PACKED(char, char)
PACKED(uchar, uchar)
PACKED(ushort, ushort)
PACKED(uint, uint)
PACKED(half, half)
PACKED(bfloat, bfloat)
PACKED(float, float)

// Three without alignment: loads and elements, no arithmetic.
template <class T> struct packed_three {
    T x, y, z;
    packed_three() = default;
    T &operator[](uint);
};
typedef packed_three<float> packed_float3;
typedef packed_three<half> packed_half3;
typedef packed_three<uchar> packed_uchar3;

#define kernel
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define thread
#define METAL_FUNC inline
#define MLX_MTL_PRAGMA_UNROLL
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HALF_MAX ((half)65504)
#undef FLT_MAX
#define FLT_MAX 3.40282347e38f
#define M_LN2_F 0.693147182f
#define M_LOG2E_F 1.442695041f
#define M_PI_F 3.14159274f

template <class T> T any_value();
template <class To, class From> To as_type(From x) {
    static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
    return any_value<To>();
}

// A cast (P)q, written space_cast<P>() ->* q: the parser would let a C cast change the space.
template <class P> struct space_cast {
    struct There {
        template <class Q> auto operator->*(Q q) const -> decltype(*reinterpret_cast<P>(q));
    };
    There operator*() const;
    template <class Q> auto operator->*(Q q) const -> decltype(reinterpret_cast<P>(q));
};

template <class V, class... A> V make_vector(A... a) { return any_value<V>(); }

namespace metal {
template <class T, int N> struct vec_of {};
#define VEC_OF(T, name) \
    template <> struct vec_of<T, 2> { typedef name##2 type; }; \
    template <> struct vec_of<T, 3> { typedef name##3 type; }; \
    template <> struct vec_of<T, 4> { typedef name##4 type; };
VEC_OF(bool, bool)
VEC_OF(char, char)
VEC_OF(uchar, uchar)
VEC_OF(short, short)
VEC_OF(ushort, ushort)
VEC_OF(int, int)
VEC_OF(uint, uint)
VEC_OF(long, long)
VEC_OF(ulong, ulong)
VEC_OF(half, half)
VEC_OF(bfloat, bfloat)
VEC_OF(float, float)
template <class T, int N> using vec = typename vec_of<T, N>::type;

// Two types of scalars give the wider; a vector and a scalar the vector.
template <class A, class B> auto wider(A a, B b) -> decltype(a + b);
#define ONE(name) template <class A> A name(A);
#define TWO(name) template <class A, class B> auto name(A a, B b) -> decltype(a + b);
#define THREE(name) template <class A, class B, class C> auto name(A a, B b, C c) -> decltype(a + b + c);
#define MATHS \
    ONE(exp) ONE(exp2) ONE(exp10) ONE(log) ONE(log2) ONE(log10) ONE(sqrt) ONE(rsqrt) ONE(sin) ONE(cos) ONE(tan) \
    ONE(tanh) ONE(sinh) ONE(cosh) ONE(atan) ONE(asin) ONE(acos) ONE(floor) ONE(ceil) ONE(trunc) ONE(round) ONE(rint) \
    ONE(fabs) ONE(fract) TWO(fmin) TWO(fmax) TWO(min) TWO(max) TWO(pow) TWO(powr) TWO(fmod)
MATHS
namespace precise { MATHS }
namespace fast { MATHS }
ONE(abs) ONE(sign) ONE(saturate) ONE(popcount) ONE(clz) ONE(ctz) ONE(reverse_bits)
TWO(copysign) TWO(step) TWO(mulhi) TWO(rotate) TWO(atan2)
THREE(fma) THREE(clamp) THREE(mix) THREE(mad)
template <class A> bool isnan(A);
template <class A> bool isinf(A);
template <class A> bool isfinite(A);
template <class A, class B> float dot(A, B);
template <class A> float length(A);
template <class A> bool any(A);
template <class A> bool all(A);
template <class A, class B, class C> A select(A, B, C);
template <class T> T extract_bits(T, uint, uint);
template <class T> T insert_bits(T, T, uint, uint);
template <class T> T ldexp(T, int);
template <class T> T frexp(T, thread int &);

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
ONE(simd_sum) ONE(simd_product) ONE(simd_max) ONE(simd_min) ONE(simd_and) ONE(simd_or) ONE(simd_xor)
ONE(simd_prefix_inclusive_sum) ONE(simd_prefix_exclusive_sum) ONE(simd_broadcast_first) ONE(quad_sum) ONE(quad_max)
#define WITH_LANE(name) template <class A> A name(A, ushort);
WITH_LANE(simd_shuffle) WITH_LANE(simd_shuffle_xor) WITH_LANE(simd_shuffle_down) WITH_LANE(simd_shuffle_up)
WITH_LANE(simd_shuffle_rotate_down) WITH_LANE(simd_shuffle_rotate_up) WITH_LANE(simd_broadcast)
WITH_LANE(quad_shuffle_xor) WITH_LANE(quad_broadcast)
template <class A> A simd_shuffle_and_fill_down(A, A, ushort);
template <class A> A simd_shuffle_and_fill_up(A, A, ushort);
struct simd_vote { ulong bits; explicit operator ulong() const; };
simd_vote simd_ballot(bool);
bool simd_any(bool);
bool simd_all(bool);
bool simd_is_first();

template <class T, int C, int R> struct simdgroup_matrix {
    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T);
    thread vec<T, 2> &thread_elements();
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
template <class T, int C, int R> simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T);
#define LOADS(space) \
    template <class T> void simdgroup_load(thread simdgroup_matrix<T, 8, 8> &, const space T *, ulong = 8, \
                                           ulong2 = 0, bool = false);
LOADS(device) LOADS(threadgroup)
#define STORES(space) \
    template <class T> void simdgroup_store(const thread simdgroup_matrix<T, 8, 8> &, space T *, ulong = 8, ulong2 = 0, \
                                            bool = false);
STORES(device) STORES(threadgroup)
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8> &, thread simdgroup_matrix<A, 8, 8> &,
                                   thread simdgroup_matrix<B, 8, 8> &, thread simdgroup_matrix<C, 8, 8> &);
template <class D, class A, class B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8> &, thread simdgroup_matrix<A, 8, 8> &,
                        thread simdgroup_matrix<B, 8, 8> &);

template <class T, int C, int R> struct matrix {
    matrix() = default;
    explicit matrix(T);
    vec<T, R> &operator[](uint);
};
typedef matrix<float, 4, 4> float4x4;
typedef matrix<half, 4, 4> half4x4;
typedef matrix<float, 2, 4> float2x4;
typedef matrix<half, 2, 4> half2x4;

enum memory_order { memory_order_relaxed };
template <class T> struct atomic { T value; };
#define ATOMIC(name) template <class T> T atomic_##name##_explicit(device atomic<T> *, T, memory_order);
ATOMIC(fetch_add) ATOMIC(fetch_sub) ATOMIC(fetch_max) ATOMIC(fetch_min) ATOMIC(fetch_or) ATOMIC(store)

template <class T> struct numeric_limits {
    static constexpr T max() { return T(3); }
    static constexpr T min() { return T(1); }
    static constexpr T lowest() { return T(1); }
    static constexpr T infinity() { return T(3); }
};
template <class A, class B> struct is_same { static constexpr constant bool value = false; };
template <class A> struct is_same<A, A> { static constexpr constant bool value = true; };
template <class A, class B> constexpr constant bool is_same_v = is_same<A, B>::value;
template <bool B, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
} // namespace metal
using namespace metal;

template <class U> struct Limits {
    static constexpr constant U max = U(3), min = U(1), finite_max = U(3), finite_min = U(1);
};
template <class T, class U> T ceildiv(T n, U m) { return (n + m - 1) / m; }
float log1p(float);
template <class U, class T> U cast_to(T);
template <class I = int64_t> I elem_to_loc(I, const constant int *, const constant int64_t *, int);

// A vector called like a function: the parser knows no such call.
#define float2(...) make_vector<float2>(__VA_ARGS__)
#define float3(...) make_vector<float3>(__VA_ARGS__)
#define float4(...) make_vector<float4>(__VA_ARGS__)
#define half2(...) make_vector<half2>(__VA_ARGS__)
#define half3(...) make_vector<half3>(__VA_ARGS__)
#define half4(...) make_vector<half4>(__VA_ARGS__)
#define bfloat2(...) make_vector<bfloat2>(__VA_ARGS__)
#define bfloat4(...) make_vector<bfloat4>(__VA_ARGS__)
#define uint2(...) make_vector<uint2>(__VA_ARGS__)
#define uint3(...) make_vector<uint3>(__VA_ARGS__)
#define uint4(...) make_vector<uint4>(__VA_ARGS__)
#define int2(...) make_vector<int2>(__VA_ARGS__)
#define int3(...) make_vector<int3>(__VA_ARGS__)
#define int4(...) make_vector<int4>(__VA_ARGS__)
#define ushort2(...) make_vector<ushort2>(__VA_ARGS__)
#define ushort4(...) make_vector<ushort4>(__VA_ARGS__)
#define short2(...) make_vector<short2>(__VA_ARGS__)
#define short4(...) make_vector<short4>(__VA_ARGS__)
#define uchar2(...) make_vector<uchar2>(__VA_ARGS__)
#define uchar4(...) make_vector<uchar4>(__VA_ARGS__)
#define char2(...) make_vector<char2>(__VA_ARGS__)
#define char4(...) make_vector<char4>(__VA_ARGS__)
#define ulong2(...) make_vector<ulong2>(__VA_ARGS__)
#define bool2(...) make_vector<bool2>(__VA_ARGS__)
#define bool4(...) make_vector<bool4>(__VA_ARGS__)
