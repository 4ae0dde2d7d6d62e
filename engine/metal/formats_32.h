// Blocks of 32 weights: two lanes to a block, 16 weights to a lane.

// Four bits to the fifth place of four bytes: the product has bit i at every i + 7 j + 4, of which i = j are kept.
inline uint fifth_bits(uint bits) {
  return ((bits & 15) * 0x02040810u) & 0x10101010u;
}

template <>
struct Block<2> {  // q4_0
  typedef Layout<2> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    float scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    return Raw{words_at((const device ushort*)(block + At::qs + 8 * piece)), half_at(block + At::d)};
  }
  static uint first(uint piece, uint group) {
    return Halves::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Halves::place(eight);
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { P = 4 * (G & 1) };
    return scaled(raw.scale, fields<P, 4, 8>(raw.qs.x), fields<P, 4, 8>(raw.qs.y));
  }
};

template <>
struct Block<3> {  // q4_1
  typedef Layout<3> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    float scale, bias;
  };

  static Raw load(const device uchar* block, uint piece) {
    return Raw{words_at((const device ushort*)(block + At::qs + 8 * piece)), half_at(block + At::d), half_at(block + At::m)};
  }
  static uint first(uint piece, uint group) {
    return Halves::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Halves::place(eight);
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { P = 4 * (G & 1) };
    return scaled(raw.scale, fields<P, 4, 0>(raw.qs.x), fields<P, 4, 0>(raw.qs.y), raw.bias);
  }
};

// Four five-bit codes of q5_0 and q5_1.
template <int G, int ZERO>
inline float4 four_of_five_bits(uint qs, uint bits) {
  return fields<0, 5, ZERO>(((qs >> (4 * G)) & 0x0F0F0F0Fu) | fifth_bits(bits));
}

template <>
struct Block<6> {  // q5_0
  typedef Layout<6> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    uint high;  // fifth bits of this lane: of the low nibbles from bit 0 on, of the high ones from bit 16 on
    float scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint high = word_at((const device ushort*)(block + At::qh)) >> (8 * piece);
    return Raw{words_at((const device ushort*)(block + At::qs + 8 * piece)), high, half_at(block + At::d)};
  }
  static uint first(uint piece, uint group) {
    return Halves::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Halves::place(eight);
  }
  template <int N>
  static Eight eight(Raw raw) {
    enum { G = N & 1 };
    const uint high = raw.high >> (16 * G);
    return scaled(raw.scale, four_of_five_bits<G, 16>(raw.qs.x, high), four_of_five_bits<G, 16>(raw.qs.y, high >> 4));
  }
};

template <>
struct Block<7> {  // q5_1
  typedef Layout<7> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    uint high;
    float scale, bias;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint high = word_at((const device ushort*)(block + At::qh)) >> (8 * piece);
    const uint2 qs = words_at((const device ushort*)(block + At::qs + 8 * piece));
    return Raw{qs, high, half_at(block + At::d), half_at(block + At::m)};
  }
  static uint first(uint piece, uint group) {
    return Halves::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Halves::place(eight);
  }
  template <int N>
  static Eight eight(Raw raw) {
    enum { G = N & 1 };
    const uint high = raw.high >> (16 * G);
    const float4 a = four_of_five_bits<G, 0>(raw.qs.x, high), b = four_of_five_bits<G, 0>(raw.qs.y, high >> 4);
    return scaled(raw.scale, a, b, raw.bias);
  }
};

template <>
struct Block<8> {  // q8_0
  typedef Layout<8> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 1 };
  struct Raw {
    uint4 qs;  // made unsigned by 128
    float scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const device ushort* qs = (const device ushort*)(block + At::qs + 16 * piece);
    return Raw{uint4(words_at(qs), words_at(qs + 4)) ^ uint4(0x80808080u), half_at(block + At::d)};
  }
  static uint first(uint piece, uint group) {
    return piece * 16 + group * 8;
  }
  static uint2 place(uint eight) {
    return uint2(eight >> 1, eight & 1);
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { W = 2 * (G & 1) };
    return scaled(raw.scale, fields<0, 8, 128>(raw.qs[W]), fields<0, 8, 128>(raw.qs[W + 1]));
  }
};
