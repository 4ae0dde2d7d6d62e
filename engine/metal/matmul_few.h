// y = x @ weights.T for a few rows of x: a simdgroup owns ROWS rows of weights and a tile of up to TILE rows of x.
//
// A sum is the same chain whatever ROWS, TILE and the number of rows: lane l takes pieces l, l + 32, ..., of each the groups
// in order, one fma for each weight; then lanes 16 apart are added, then 8, 4, 2 and 1 apart. So a row has the same bits alone
// and in any batch.

// N values of each lane, summed over lanes M, M / 2, ..., 1 apart; value i ends in lane i * 32 / N and the next ones. At each
// step a lane keeps half of the values and gives its partner the other half, so that 32 sums take 31 exchanges and not 160.
template <int N, int M>
struct Folded {
  static float of(thread float* v, uint lane) {
    const bool upper = (lane & M) != 0;
    for (int i = 0; i < N / 2; i++) {
      const float kept = upper ? v[i + N / 2] : v[i];
      const float given = upper ? v[i] : v[i + N / 2];
      v[i] = kept + simd_shuffle_xor(given, ushort(M));
    }
    return Folded<N / 2, M / 2>::of(v, lane);
  }
};

template <int M>
struct Folded<1, M> {
  static float of(thread float* v, uint lane) {
    v[0] += simd_shuffle_xor(v[0], ushort(M));
    return Folded<1, M / 2>::of(v, lane);
  }
};

template <>
struct Folded<1, 0> {
  static float of(thread float* v, uint) {
    return v[0];
  }
};

inline float chained(Eight w, Eight x, float sum) {
  sum = fma(w.a.x, x.a.x, sum);
  sum = fma(w.a.y, x.a.y, sum);
  sum = fma(w.a.z, x.a.z, sum);
  sum = fma(w.a.w, x.a.w, sum);
  sum = fma(w.b.x, x.b.x, sum);
  sum = fma(w.b.y, x.b.y, sum);
  sum = fma(w.b.z, x.b.z, sum);
  return fma(w.b.w, x.b.w, sum);
}

// Sums of ROWS rows from n0 on with TILE rows of x, of which only `tall` exist. A row beyond the last is the last again.
template <int ROWS, int TILE, bool WHOLE, typename M, typename X>
inline void few_sums(M weights, const device X* x, uint N, uint K, uint n0, uint tall, uint lane, thread float* sums) {
  typename M::Row rows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    rows[r] = weights.row(min(n0 + r, N - 1));
  }
  for (uint piece = lane; piece < K / M::PIECE; piece += 32) {
    typename M::Raw raw[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      raw[r] = M::load(rows[r], piece);
    }
    // Unrolled, a tall tile's code would outgrow the instruction cache (12 KB); then `eight` branches, all lanes alike.
#pragma unroll(TILE > 2 ? 1 : M::GROUPS)
    for (int g = 0; g < M::GROUPS; g++) {
      Eight w[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        w[r] = M::eight(raw[r], g);
      }
      const device X* column = x + M::first(piece, g);
#pragma unroll
      for (int t = 0; t < TILE; t++) {
        if (WHOLE || uint(t) < tall) {
          const Eight v = eight_at(column + ulong(t) * K);
#pragma unroll
          for (int r = 0; r < ROWS; r++) {
            sums[r * TILE + t] = chained(w[r], v, sums[r * TILE + t]);
          }
        }
      }
    }
  }
}

template <int ROWS, int TILE, typename M, typename X>
inline void few_rows(M weights, const device X* x, device X* y, uint T, uint N, uint K, uint n0, uint t0, uint lane) {
  static_assert((ROWS & (ROWS - 1)) == 0 && (TILE & (TILE - 1)) == 0 && ROWS * TILE <= 32, "a lane for each sum");
  if (n0 >= N) {
    return;  // a whole simdgroup leaves, and no barrier follows
  }
  float sums[ROWS * TILE];
#pragma unroll
  for (int i = 0; i < ROWS * TILE; i++) {
    sums[i] = 0;
  }
  const uint tall = min(T - t0, uint(TILE));
  x += ulong(t0) * K;
  if (tall == TILE) {
    few_sums<ROWS, TILE, true>(weights, x, N, K, n0, tall, lane, sums);
  } else {
    few_sums<ROWS, TILE, false>(weights, x, N, K, n0, tall, lane, sums);
  }
  const float sum = Folded<ROWS * TILE, 16>::of(sums, lane);
  enum { LANES = 32 / (ROWS * TILE) };  // that hold the same sum
  const uint r = lane / LANES / TILE, t = lane / LANES % TILE;
  if (lane % LANES == 0 && t < tall && n0 + r < N) {
    y[ulong(t0 + t) * N + n0 + r] = X(sum);
  }
}
