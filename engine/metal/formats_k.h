// K-quants: blocks of 256 weights, eight lanes to a block, 32 weights to a lane.

// q2_k, q3_k and q6_k keep 128 weights in planes: a byte of a run of 32 holds the codes of four weights, 32 apart.
struct Runs {
  static uint first(uint piece, uint group) {
    return (piece >> 2) * 128 + group * 32 + (piece & 3) * 8;
  }
  static uint2 place(uint eight) {
    return uint2((eight >> 4) * 4 + (eight & 3), (eight >> 2) & 3);
  }
};

// q4_k and q5_k keep 64 weights in 32 bytes: 32 in the low nibbles, the next 32 in the high ones.
struct Nibbles {
  static uint first(uint piece, uint group) {
    return (piece >> 1) * 64 + (piece & 1) * 16 + (group & 1) * 8 + (group >> 1) * 32;
  }
  static uint2 place(uint eight) {
    return uint2((eight >> 3) * 2 + ((eight >> 1) & 1), ((eight >> 2) & 1) * 2 + (eight & 1));
  }
};

template <>
struct Block<10> {  // q2_k
  typedef Layout<10> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 0 };
  struct Raw {
    uint2 qs;
    float4 scale, bias;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint half_block = piece >> 2, run = piece & 3;
    const device uint* qs = (const device uint*)(block + At::qs + 32 * half_block + 8 * run);
    const uint scales = bytes_apart(block + At::scales + 8 * half_block + (run >> 1), 2);
    return Raw{uint2(qs[0], qs[1]), float4(half_at(block + At::d)) * fields<0, 4, 0>(scales),
               float4(-half_at(block + At::dmin)) * fields<4, 4, 0>(scales)};
  }
  static uint first(uint piece, uint group) {
    return Runs::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Runs::place(eight);
  }
  template <int G>
  static Eight eight(Raw raw) {
    return scaled(raw.scale[G], fields<2 * G, 2, 0>(raw.qs.x), fields<2 * G, 2, 0>(raw.qs.y), raw.bias[G]);
  }
};

template <>
struct Block<11> {  // q3_k
  typedef Layout<11> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 0 };
  struct Raw {
    uint2 qs, mask;
    float4 scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint half_block = piece >> 2, run = piece & 3;
    const uint2 qs = words_at((const device ushort*)(block + At::qs + 32 * half_block + 8 * run));
    const uint2 mask = words_at((const device ushort*)(block + At::hmask + 8 * run));
    const float4 scale = fields<0, 6, 32>(scales(block + At::scales + (run >> 1), half_block));
    return Raw{qs, mask >> uint2(4 * half_block), float4(half_at(block + At::d)) * scale};
  }
  // Six bits for each of four groups: the low four in a nibble of eight bytes, the high two in a quarter of four more.
  static uint scales(const device uchar* p, uint half_block) {
    const uint low = bytes_apart(p, 2) >> (4 * half_block);
    const uint high = as_type<uint>(uchar4(p[8], p[10], p[8], p[10])) >> (4 * half_block);
    return (low & 0x0F0F0F0Fu) | ((high & 0x00000303u) << 4) | ((high & 0x0C0C0000u) << 2);
  }
  static uint first(uint piece, uint group) {
    return Runs::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Runs::place(eight);
  }
  template <int G>
  static float4 four(uint qs, uint mask) {
    return fields<0, 3, 4>(((qs >> (2 * G)) & 0x03030303u) | (((mask >> G) << 2) & 0x04040404u));
  }
  template <int G>
  static Eight eight(Raw raw) {
    return scaled(raw.scale[G], four<G>(raw.qs.x, raw.mask.x), four<G>(raw.qs.y, raw.mask.y));
  }
};

struct SubScales {
  float2 scale, bias;
};

inline float2 two_bytes(ushort bytes) {
  const uint apart = uint(bytes & 0xFF) | (uint(bytes & 0xFF00) << 8);
  const half2 numbers = as_type<half2>(apart | 0x64006400u) - half2(half(1024.0f));
  return float2(float(numbers.x), float(numbers.y));
}

// Scales and minima of the sub-blocks 2 pair and 2 pair + 1 of q4_k and q5_k: six bits each, in twelve bytes.
inline SubScales sub_scales(const device uchar* scales, uint pair, float d, float dmin) {
  const device ushort* words = (const device ushort*)scales + (pair & 1);
  const ushort a = words[0], b = words[2], c = words[4];
  const bool early = pair < 2;
  const ushort scale = early ? a & 0x3F3F : (c & 0x0F0F) | ((a >> 2) & 0x3030);
  const ushort least = early ? b & 0x3F3F : ((c >> 4) & 0x0F0F) | ((b >> 2) & 0x3030);
  return SubScales{float2(d) * two_bytes(scale), float2(-dmin) * two_bytes(least)};
}

template <>
struct Block<12> {  // q4_k
  typedef Layout<12> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 1 };
  struct Raw {
    uint4 qs;
    SubScales sub;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint4 qs = *(const device uint4*)(block + At::qs + 16 * piece);
    return Raw{qs, sub_scales(block + At::scales, piece >> 1, half_at(block + At::d), half_at(block + At::dmin))};
  }
  static uint first(uint piece, uint group) {
    return Nibbles::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Nibbles::place(eight);
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { W = 2 * (G & 1), HIGH = G >> 1 };
    const float4 a = fields<4 * HIGH, 4, 0>(raw.qs[W]), b = fields<4 * HIGH, 4, 0>(raw.qs[W + 1]);
    return scaled(raw.sub.scale[HIGH], a, b, raw.sub.bias[HIGH]);
  }
};

template <>
struct Block<13> {  // q5_k
  typedef Layout<13> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 1 };
  struct Raw {
    uint4 qs, high;  // the fifth bit of a low nibble is bit 0 of its byte of `high`, that of a high nibble bit 1
    SubScales sub;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint pair = piece >> 1;
    const uint4 qs = *(const device uint4*)(block + At::qs + 16 * piece);
    const uint4 high = *(const device uint4*)(block + At::qh + 16 * (piece & 1));
    const SubScales sub = sub_scales(block + At::scales, pair, half_at(block + At::d), half_at(block + At::dmin));
    return Raw{qs, high >> uint4(2 * pair), sub};
  }
  static uint first(uint piece, uint group) {
    return Nibbles::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Nibbles::place(eight);
  }
  template <int HIGH>
  static float4 four(uint qs, uint high) {
    return fields<0, 5, 0>(((qs >> (4 * HIGH)) & 0x0F0F0F0Fu) | ((high << (4 - HIGH)) & 0x10101010u));
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { W = 2 * (G & 1), HIGH = G >> 1 };
    const float4 a = four<HIGH>(raw.qs[W], raw.high[W]), b = four<HIGH>(raw.qs[W + 1], raw.high[W + 1]);
    return scaled(raw.sub.scale[HIGH], a, b, raw.sub.bias[HIGH]);
  }
};

template <>
struct Block<14> {  // q6_k
  typedef Layout<14> At;
  enum { PIECES = 8, GROUPS = 4, PAIRED = 0 };
  struct Raw {
    uint4 low;  // two runs of eight bytes
    uint2 high;
    float4 scale;
  };

  static Raw load(const device uchar* block, uint piece) {
    const uint half_block = piece >> 2, run = piece & 3;
    const device ushort* ql = (const device ushort*)(block + At::ql + 64 * half_block + 8 * run);
    const uint2 high = words_at((const device ushort*)(block + At::qh + 32 * half_block + 8 * run));
    // Signed bytes, made unsigned by 128.
    const uint scales = bytes_apart(block + At::scales + 8 * half_block + (run >> 1), 2) ^ 0x80808080u;
    return Raw{uint4(words_at(ql), words_at(ql + 16)), high, float4(half_at(block + At::d)) * fields<0, 8, 128>(scales)};
  }
  static uint first(uint piece, uint group) {
    return Runs::first(piece, group);
  }
  static uint2 place(uint eight) {
    return Runs::place(eight);
  }
  template <int G>
  static float4 four(uint low, uint high) {
    return fields<0, 6, 32>(((low >> (4 * (G >> 1))) & 0x0F0F0F0Fu) | (((high >> (2 * G)) << 4) & 0x30303030u));
  }
  template <int G>
  static Eight eight(Raw raw) {
    enum { W = 2 * (G & 1) };
    return scaled(raw.scale[G], four<G>(raw.low[W], raw.high.x), four<G>(raw.low[W + 1], raw.high.y));
  }
};
