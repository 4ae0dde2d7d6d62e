// Weights in groups of eight: what every format's reading is made of. Each weight is in every bit what quant/decode.py says.
//
// A reading cuts a row into pieces, of which a lane takes one at a time: `load` fetches a piece, `eight` gives one of its
// groups of eight neighbouring weights, `first` says where in the row that group begins, `place` finds both again.
//
// On M1 and M2 shifts and conversions from integer to float take four times as long as a multiply-add, other bitwise
// operations as long as one. So codes become numbers by being set into the fraction of a half: 0x6400 is 1024, and its
// last place counts ones.
#pragma METAL fp contract(off)

struct Eight {
  float4 a, b;
};

// The fields of BITS bits at bit P of four bytes, less ZERO. Exact: every step is a whole number below 2048 times 2^-P.
template <int P, int BITS, int ZERO>
inline float4 fields(uint bytes) {
  const uint mask = (((1u << BITS) - 1u) << P) * 0x00010001u;
  const half2 step = half2(half(1.0f / float(1 << P)));
  const half2 zero = half2(half(-1024.0f / float(1 << P) - float(ZERO)));
  const half2 even = fma(as_type<half2>((bytes & mask) | 0x64006400u), step, zero);
  const half2 odd = fma(as_type<half2>(((bytes >> 8) & mask) | 0x64006400u), step, zero);
  return float4(float(even.x), float(odd.x), float(even.y), float(odd.y));
}

inline Eight scaled(float scale, float4 a, float4 b) {
  return Eight{float4(scale) * a, float4(scale) * b};
}

// One rounding, as the formats define it: a scale of at most 17 bits times a code is exact. (Scales of 24 bits round twice.)
inline Eight scaled(float scale, float4 a, float4 b, float bias) {
  return Eight{fma(float4(scale), a, float4(bias)), fma(float4(scale), b, float4(bias))};
}

inline float half_at(const device uchar* p) {
  return float(*(const device half*)p);
}

// Four and eight bytes of which only every second address is whole: blocks of 18, 22, 34, 110 and 210 bytes.
inline uint word_at(const device ushort* p) {
  return as_type<uint>(ushort2(p[0], p[1]));
}

inline uint2 words_at(const device ushort* p) {
  return uint2(word_at(p), word_at(p + 2));
}

inline uint bytes_apart(const device uchar* p, uint apart) {
  return as_type<uint>(uchar4(p[0], p[apart], p[2 * apart], p[3 * apart]));
}

template <typename T>
inline Eight eight_at(const device T* p) {
  const device vec<T, 4>* fours = (const device vec<T, 4>*)p;
  return Eight{float4(fours[0]), float4(fours[1])};
}

// A group of a piece, by a number that is a constant after unrolling or the same in a whole simdgroup.
template <typename F>
inline Eight nth(typename F::Raw raw, uint group) {
  switch (group) {
    case 0:
      return F::template eight<0>(raw);
    case 1:
      return F::template eight<1>(raw);
    case 2:
      return F::template eight<2>(raw);
    default:
      return F::template eight<3>(raw);
  }
}

template <int FORMAT>
struct Layout;  // sizes of a block and offsets of its fields: printed from the table of formats
template <int FORMAT>
struct Block;  // its reading

// Blocks of 32 weights in 16 bytes: a byte holds two weights, 16 apart.
struct Halves {
  static uint first(uint piece, uint group) {
    return piece * 8 + group * 16;
  }
  static uint2 place(uint eight) {
    return uint2(eight & 1, eight >> 1);
  }
};

// Rows of GGUF blocks as the file has them.
template <int FORMAT>
struct Blocks {
  typedef Block<FORMAT> B;
  typedef Layout<FORMAT> At;
  typedef typename B::Raw Raw;
  typedef const device uchar* Row;
  enum { PIECE = At::VALUES / B::PIECES, GROUPS = B::GROUPS, PAIRED = B::PAIRED };

  const device uchar* data;
  ulong pitch;  // bytes of a row

  Row row(uint n) const {
    return data + n * pitch;
  }
  static Raw load(Row row, uint piece) {
    return B::load(row + piece / B::PIECES * At::BYTES, piece % B::PIECES);
  }
  static uint first(uint piece, uint group) {
    return piece / B::PIECES * At::VALUES + B::first(piece % B::PIECES, group);
  }
  static uint2 place(uint eight) {
    const uint2 inside = B::place(eight % (At::VALUES / 8));
    return uint2(eight / (At::VALUES / 8) * B::PIECES + inside.x, inside.y);
  }
  static Eight eight(Raw raw, uint group) {
    return nth<B>(raw, group);
  }
};
