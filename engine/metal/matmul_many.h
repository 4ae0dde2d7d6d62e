// y = x @ weights.T for many rows of x: 64 rows by 64 columns to a threadgroup of four simdgroups, by 8x8 matrices.
//
// K is walked in order, 32 at a time: x and the decoded weights are rounded to their tiles' types in threadgroup memory,
// sums are float. A row of y does not depend on the others: rows beyond the last are zeros, and no sum is split.
#include <metal_simdgroup_matrix>

enum { TILE_ROWS = 64, TILE_COLS = 64, TILE_DEPTH = 32 };
// Rows of a tile lie 16 bytes further apart than they are long, so that eight of them start in different banks.
template <typename E>
struct Pitch {
  enum { X = TILE_DEPTH + 16 / sizeof(E), W = TILE_COLS + 16 / sizeof(E) };
};

template <typename E>
inline void put_apart(threadgroup E* to, Eight v, uint apart) {
  to[0] = E(v.a.x);
  to[apart] = E(v.a.y);
  to[2 * apart] = E(v.a.z);
  to[3 * apart] = E(v.a.w);
  to[4 * apart] = E(v.b.x);
  to[5 * apart] = E(v.b.y);
  to[6 * apart] = E(v.b.z);
  to[7 * apart] = E(v.b.w);
}

// 16 values of row `t` from k on, two threads to a row; zeros outside x.
template <typename X, typename E>
inline void bring_x(threadgroup E* xs, const device X* x, uint T, uint K, uint t0, uint k0, uint thread_index) {
  const uint row = thread_index / 2, col = thread_index % 2 * 16;
#pragma unroll
  for (uint e = 0; e < 16; e += 8) {
    Eight v = Eight{float4(0), float4(0)};
    if (t0 + row < T && k0 + col + e < K) {
      v = eight_at(x + ulong(t0 + row) * K + k0 + col + e);
    }
    put_apart(xs + row * Pitch<E>::X + col + e, v, 1);
  }
}

// 16 weights of one row from k on, transposed: lanes take neighbouring rows of weights and so write neighbouring addresses.
template <typename M, typename E>
inline void bring_weights(threadgroup E* ws, M weights, uint N, uint K, uint n0, uint k0, uint thread_index) {
  const uint col = thread_index % TILE_COLS, depth = thread_index / TILE_COLS * 16;
  const typename M::Row row = weights.row(min(n0 + col, N - 1));
  const uint2 at = M::place((k0 + depth) / 8);
  Eight a = Eight{float4(0), float4(0)}, b = a;
  if (k0 + depth < K) {
    const typename M::Raw raw = M::load(row, at.x);
    a = M::eight(raw, at.y);
    if (M::PAIRED) {
      b = M::eight(raw, at.y + 1);
    } else if (k0 + depth + 8 < K) {
      const uint2 next = M::place((k0 + depth) / 8 + 1);
      b = M::eight(M::load(row, next.x), next.y);
    }
  }
  put_apart(ws + depth * Pitch<E>::W + col, a, Pitch<E>::W);
  put_apart(ws + (depth + 8) * Pitch<E>::W + col, b, Pitch<E>::W);
}

template <typename EX, typename EW>
struct Quarter {  // of the tile of y: 32 by 32, one for each simdgroup
  simdgroup_matrix<float, 8, 8> sums[4][4];

  void clear() {
#pragma unroll
    for (int i = 0; i < 16; i++) {
      sums[i / 4][i % 4] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  void add(const threadgroup EX* xs, const threadgroup EW* ws) {
#pragma unroll
    for (int k = 0; k < TILE_DEPTH; k += 8) {
      simdgroup_matrix<EX, 8, 8> a[4];
      simdgroup_matrix<EW, 8, 8> b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        simdgroup_load(a[i], xs + 8 * i * Pitch<EX>::X + k, Pitch<EX>::X);
        simdgroup_load(b[i], ws + k * Pitch<EW>::W + 8 * i, Pitch<EW>::W);
      }
#pragma unroll
      for (int i = 0; i < 16; i++) {
        simdgroup_multiply_accumulate(sums[i / 4][i % 4], a[i / 4], b[i % 4], sums[i / 4][i % 4]);
      }
    }
  }

  // Eight rows at a time through 256 floats of the simdgroup's own, from which only what exists is written.
  template <typename X>
  void write(threadgroup float* own, device X* y, uint T, uint N, uint t0, uint n0, uint lane) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        simdgroup_store(sums[i][j], own + 8 * j, 32);
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
      for (uint r = 0; r < 8; r++) {
        const uint row = t0 + 8 * i + r;
        if (row < T && n0 + lane < N) {
          y[ulong(row) * N + n0 + lane] = X(own[32 * r + lane]);
        }
      }
    }
  }
};

template <typename EX, typename EW, typename M, typename X>
inline void many_rows(M weights, const device X* x, device X* y, uint T, uint N, uint K, uint t0, uint n0,
                      threadgroup EX* xs, threadgroup EW* ws, uint thread_index, uint quarter_index, uint lane) {
  const uint top = quarter_index / 2 * 32, left = quarter_index % 2 * 32;
  Quarter<EX, EW> quarter;
  quarter.clear();
  for (uint k0 = 0; k0 < K; k0 += TILE_DEPTH) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the tiles before are read
    bring_x(xs, x, T, K, t0, k0, thread_index);
    bring_weights(ws, weights, N, K, n0, k0, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // these are written
    quarter.add(xs + top * Pitch<EX>::X, ws + left);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  quarter.write((threadgroup float*)xs + 256 * quarter_index, y, T, N, t0 + top, n0 + left, lane);
}
