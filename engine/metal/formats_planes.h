// MLX's planes, and dense rows.

// Eight codes of BITS bits in a row's stream of bits, least significant first, from code 8 G of 32 on.
template <int BITS, int G>
struct Codes {
  static float one(const thread uint* words, int i) {
    const int bit = (8 * G + i) * BITS, word = bit / 32, shift = bit % 32;
    uint code = words[word] >> shift;
    if (shift + BITS > 32) {
      code |= words[word + 1] << (32 - shift);
    }
    // A float of 2^23 counts in ones.
    return as_type<float>((code & ((1u << BITS) - 1u)) | 0x4B000000u) - 8388608.0f;
  }
  static Eight of(const thread uint* words) {
    return Eight{float4(one(words, 0), one(words, 1), one(words, 2), one(words, 3)),
                 float4(one(words, 4), one(words, 5), one(words, 6), one(words, 7))};
  }
};

template <int G>
struct Codes<2, G> {
  static Eight of(const thread uint* words) {
    const uint codes = words[G >> 1];
    const float4 p = fields<0, 2, 0>(codes), q = fields<2, 2, 0>(codes);
    const float4 r = fields<4, 2, 0>(codes), s = fields<6, 2, 0>(codes);
    enum { B = 2 * (G & 1) };
    return Eight{float4(p[B], q[B], r[B], s[B]), float4(p[B + 1], q[B + 1], r[B + 1], s[B + 1])};
  }
};

template <int G>
struct Codes<4, G> {
  static Eight of(const thread uint* words) {
    const float4 even = fields<0, 4, 0>(words[G]), odd = fields<4, 4, 0>(words[G]);
    return Eight{float4(even.x, odd.x, even.y, odd.y), float4(even.z, odd.z, even.w, odd.w)};
  }
};

template <int G>
struct Codes<8, G> {
  static Eight of(const thread uint* words) {
    return Eight{fields<0, 8, 0>(words[2 * G]), fields<0, 8, 0>(words[2 * G + 1])};
  }
};

// Codes in a plane of words, a scale and a bias for each GROUP of a row. 32 codes fill BITS words.
template <int BITS, int GROUP, typename S>
struct Planes {
  enum { PIECE = 32, GROUPS = 4, PAIRED = 1 };
  struct Row {
    const device uint* words;
    const device S* scales;
    const device S* biases;
  };
  struct Raw {
    uint words[BITS];
    float scale, bias;
  };

  const device uint* words;
  const device S* scales;
  const device S* biases;
  ulong pitch;   // words of a row
  ulong groups;  // scales of a row

  Row row(uint n) const {
    return Row{words + n * pitch, scales + n * groups, biases + n * groups};
  }
  static Raw load(Row row, uint piece) {
    Raw raw;
    for (int i = 0; i < BITS; i++) {
      raw.words[i] = row.words[piece * BITS + i];
    }
    raw.scale = float(row.scales[piece * PIECE / GROUP]);
    raw.bias = float(row.biases[piece * PIECE / GROUP]);
    return raw;
  }
  static uint first(uint piece, uint group) {
    return piece * PIECE + group * 8;
  }
  static uint2 place(uint eight) {
    return uint2(eight >> 2, eight & 3);
  }
  template <int G>
  static Eight eight(Raw raw) {
    const Eight codes = Codes<BITS, G>::of(raw.words);
    if (sizeof(S) < 4) {
      return scaled(raw.scale, codes.a, codes.b, raw.bias);
    }
    return Eight{float4(raw.scale) * codes.a + float4(raw.bias), float4(raw.scale) * codes.b + float4(raw.bias)};
  }
  static Eight eight(Raw raw, uint group) {
    return nth<Planes>(raw, group);
  }
};

template <typename V>
struct Dense {
  enum { PIECE = 8, GROUPS = 1, PAIRED = 0 };
  typedef Eight Raw;
  typedef const device V* Row;

  const device V* values;
  ulong pitch;

  Row row(uint n) const {
    return values + n * pitch;
  }
  static Raw load(Row row, uint piece) {
    return eight_at(row + piece * PIECE);
  }
  static uint first(uint piece, uint) {
    return piece * PIECE;
  }
  static uint2 place(uint eight) {
    return uint2(eight, 0);
  }
  static Eight eight(Raw raw, uint) {
    return raw;
  }
};
