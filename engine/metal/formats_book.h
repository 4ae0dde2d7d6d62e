// Formats whose four-bit codes are places in a table of 16 numbers, `Layout<FORMAT>::number`.

template <int FORMAT, int HIGH>
inline float4 four_looked_up(uint bytes) {
  typedef Layout<FORMAT> At;
  const uchar4 codes = as_type<uchar4>((bytes >> (4 * HIGH)) & 0x0F0F0F0Fu);
  return float4(At::number(codes.x), At::number(codes.y), At::number(codes.z), At::number(codes.w));
}

template <>
struct Block<20> {  // iq4_nl
  typedef Layout<20> At;
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
    return scaled(raw.scale, four_looked_up<20, G & 1>(raw.qs.x), four_looked_up<20, G & 1>(raw.qs.y));
  }
};

template <>
struct Block<23> {  // iq4_xs: eight sub-blocks of 32 weights, a lane for each
  typedef Layout<23> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 1 };
  struct Raw {
    uint4 qs;
    float scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const device uint2* qs = (const device uint2*)(block + At::qs + 16 * piece);
    const uint low = (block[At::scales_l + (piece >> 1)] >> (4 * (piece & 1))) & 15;
    const uint high = (*(const device ushort*)(block + At::scales_h) >> (2 * piece)) & 3;
    return Raw{uint4(qs[0], qs[1]), half_at(block + At::d) * (float(low | (high << 4)) - 32.0f)};
  }
  static uint first(uint piece, uint group) {
    return piece * 32 + group * 8;
  }
  static uint2 place(uint eight) {
    return uint2(eight >> 2, eight & 3);
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { W = 2 * (G & 1), HIGH = G >> 1 };
    return scaled(raw.scale, four_looked_up<23, HIGH>(raw.qs[W]), four_looked_up<23, HIGH>(raw.qs[W + 1]));
  }
};

template <>
struct Block<39> {  // mxfp4: 17 bytes, of which no address is even
  typedef Layout<39> At;
  enum { PIECES = 2, GROUPS = 2, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    float scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const device uchar* qs = block + At::qs + 8 * piece;
    // Half of 2^(e - 127), the table being doubled; the two least exponents are denormal.
    const uint e = block[At::e];
    const uint bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    return Raw{uint2(bytes_apart(qs, 1), bytes_apart(qs + 4, 1)), as_type<float>(bits)};
  }
  static uint first(uint piece, uint group) {
    return Halves::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Halves::place(eight);
  }
  template <int G>
  static Eight eight(Raw raw) {
    return scaled(raw.scale, four_looked_up<39, G & 1>(raw.qs.x), four_looked_up<39, G & 1>(raw.qs.y));
  }
};
