// What the attention kernels share: reading of numbers from pages, and sums of scores.
// Follows layer.h.

namespace puna {

// Where BITS is 8 or 4, a row is bytes: for each 32 dims a scale (bfloat), filled up to whole 4 bytes, then the codes. A number is
// its code times its scale, exactly. Codes of 8 bits are signed bytes; of 4 bits an index into CODEBOOK, dim i of 32 in the
// low half of byte i, dim 16 + i in the high half.
constexpr int scale_bytes(int head_dim) { return (head_dim + 63) / 64 * 4; }

template <typename T>
inline float scale_at(const device T* row, int at) {
  return float(reinterpret_cast<const device bfloat16_t*>(row)[at / 32]);
}

// What a byte says of a dim in the same half of its group as `at`.
template <int BITS>
inline float decoded(uchar code, int at) {
  if constexpr (BITS == 8) return float(as_type<char>(code));
  return CODEBOOK[at & 16 ? code >> 4 : code & 15];
}

// COUNT neighbouring numbers of a row, from `at` on.
template <int COUNT, int HEAD_DIM, int BITS, typename T>
inline void numbers(const device T* row, int at, thread float* out) {
  constexpr int LOAD = COUNT < 4 ? COUNT : 4;
  const int place = BITS > 8 ? at : BITS == 8 ? scale_bytes(HEAD_DIM) + at : scale_bytes(HEAD_DIM) + at / 32 * 16 + at % 16;
  for (int i = 0; i < COUNT; i += LOAD) {
    const vec<T, LOAD> some = *reinterpret_cast<const device vec<T, LOAD>*>(row + place + i);
    for (int j = 0; j < LOAD; ++j) {
      if constexpr (BITS > 8) {
        out[i + j] = float(some[j]);
      } else {
        out[i + j] = decoded<BITS>(some[j], at) * scale_at(row, at);
      }
    }
  }
}

// Of 32 sums, each spread over the 32 lanes, lane i gets the i-th whole. At each distance a lane gives away the half that is not
// its own, so 31 exchanges do what 160 would. Whatever its number, a sum is taken over pairs of lanes at distance 16, then 8, 4,
// 2, 1: the same bits as summed().
inline float dealt(thread float* sums, int lane) {
  for (ushort distance = 16; distance > 0; distance /= 2) {
    const bool upper = lane & distance;
    for (ushort i = 0; i < distance; ++i) {
      const float kept = upper ? sums[i + distance] : sums[i];
      const float given = upper ? sums[i] : sums[i + distance];
      sums[i] = kept + simd_shuffle_xor(given, distance);
    }
  }
  return sums[0];
}

// Copies a page's 32 tokens, `stride` apart, to rows of WIDTH in threadgroup memory: numbers, or codes and apart from them their
// scales (32, groups). Tokens from `written` on become zeros. If CLEANED, so does what is no finite number, and it is told
// whether this thread met one.
template <int THREADS, int HEAD_DIM, int WIDTH, int BITS, bool CLEANED, typename T, typename S>
inline bool stage(const device T* rows, int stride, threadgroup S* to, threadgroup float* scales, int written, int thread_) {
  constexpr int QUADS = HEAD_DIM / 4, GROUPS = (HEAD_DIM + 31) / 32;
  bool met = false;
  if constexpr (BITS <= 8) {
    for (int i = thread_; i < 32 * GROUPS; i += THREADS) {
      const int token = i / GROUPS;
      float scale = token < written ? scale_at(rows + token * stride, i % GROUPS * 32) : 0.0f;
      if (CLEANED && !isfinite(scale)) {
        scale = 0;
        met = true;
      }
      scales[i] = scale;
    }
  }
  for (int i = thread_; i < 32 * QUADS; i += THREADS) {
    const int token = i / QUADS, at = i % QUADS * 4;
    vec<S, 4> four = vec<S, 4>(S(0));
    if (token < written) {
      const device T* row = rows + token * stride;
      if constexpr (BITS > 8) {
        four = *reinterpret_cast<const device vec<S, 4>*>(row + at);
      } else {
        const int place = scale_bytes(HEAD_DIM) + (BITS == 8 ? at : at / 32 * 16 + at % 16);
        const vec<T, 4> bytes = *reinterpret_cast<const device vec<T, 4>*>(row + place);
        for (int j = 0; j < 4; ++j) four[j] = S(decoded<BITS>(bytes[j], at));
      }
    }
    if constexpr (CLEANED && BITS > 8) {
      for (int j = 0; j < 4; ++j) {
        if (!isfinite(float(four[j]))) {
          four[j] = S(0);
          met = true;
        }
      }
    }
    *reinterpret_cast<threadgroup vec<S, 4>*>(to + token * WIDTH + at) = four;
  }
  return met;
}

}  // namespace puna
