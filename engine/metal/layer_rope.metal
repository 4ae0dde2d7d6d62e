  // One row and head of q, k or v: norm of the head if the model has one, rope for q and k, all in float32, rounded once. Keys and
  // values come out side by side, as the pool takes them. A lane has pairs of dims that turn together.
  constexpr int HALF = ROPE_DIMS / 2, PAIRS = (HEAD_DIM / 2 + 31) / 32;
  constexpr int GROUPS = (HEAD_DIM + 31) / 32, CODES_AT = (HEAD_DIM + 63) / 64 * 4;
  constexpr int ROW = BITS > 8 ? HEAD_DIM : CODES_AT + (BITS == 8 ? HEAD_DIM : GROUPS * 16);
  threadgroup float heads[BITS > 8 ? 1 : 4 * HEAD_DIM];
  const int lane = thread_index_in_simdgroup, own = simdgroup_index_in_threadgroup;
  const int head = thread_position_in_grid.y, row = thread_position_in_grid.z;
  const bool is_query = head < HEADS, is_value = head >= HEADS + KV_HEADS;

  float low[PAIRS], high[PAIRS];
  float squares = 0;
  for (int i = 0; i < PAIRS; ++i) {
    const int pair = i * 32 + lane;
    low[i] = high[i] = 0;
    if (pair < HEAD_DIM / 2) {
      const int a = puna::low_of<HALF, INTERLEAVED>(pair), b = puna::high_of<HALF, INTERLEAVED>(pair);
      if (is_query) {
        const size_t at = (size_t(row) * HEADS + head) * HEAD_DIM;
        low[i] = float(q[at + a]);
        high[i] = float(q[at + b]);
      } else if (is_value) {
        const size_t at = (size_t(row) * KV_HEADS + head - HEADS - KV_HEADS) * HEAD_DIM;
        low[i] = float(v[at + a]);
        high[i] = float(v[at + b]);
      } else {
        const size_t at = (size_t(row) * KV_HEADS + head - HEADS) * HEAD_DIM;
        low[i] = float(k[at + a]);
        high[i] = float(k[at + b]);
      }
    }
    squares = fma(low[i], low[i], squares);
    squares = fma(high[i], high[i], squares);
  }
  const float inverse = NORMED ? rsqrt(puna::summed(squares) / HEAD_DIM + eps) : 1.0f;

  const size_t angles = size_t(positions[row]) * ROPE_DIMS;
  for (int i = 0; i < PAIRS; ++i) {
    const int pair = i * 32 + lane;
    if (pair < HEAD_DIM / 2) {
      const int a = puna::low_of<HALF, INTERLEAVED>(pair), b = puna::high_of<HALF, INTERLEAVED>(pair);
      float x = low[i], y = high[i];
      if (NORMED && !is_value) {
        x = x * inverse * (is_query ? q_norm[a] : k_norm[a]);
        y = y * inverse * (is_query ? q_norm[b] : k_norm[b]);
      }
      if (pair < HALF && !is_value) {
        const float cosine = turns[angles + pair], sine = turns[angles + HALF + pair];
        const float turned = fma(x, cosine, -(y * sine));
        y = fma(x, sine, y * cosine);
        x = turned;
      }
      if (is_query) {
        const size_t at = (size_t(row) * HEADS + head) * HEAD_DIM;
        queries[at + a] = Q(x);
        queries[at + b] = Q(y);
      } else if (BITS > 8) {  // (2, K heads, Dh) a row: heads of keys, then heads of values
        const size_t at = (size_t(row) * 2 * KV_HEADS + head - HEADS) * ROW;
        kv[at + a] = KV(x);
        kv[at + b] = KV(y);
      } else {
        heads[BITS > 8 ? 0 : own * HEAD_DIM + a] = x;
        heads[BITS > 8 ? 0 : own * HEAD_DIM + b] = y;
      }
    }
  }
  if (BITS <= 8 && !is_query) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const size_t at = (size_t(row) * 2 * KV_HEADS + head - HEADS) * ROW;
    if (lane < CODES_AT - 2 * GROUPS) kv[at + 2 * GROUPS + lane] = KV(0);
    for (int g = 0; g < GROUPS; ++g) {
      const int dim = g * 32 + lane;
      const float x = dim < HEAD_DIM ? heads[BITS > 8 ? 0 : own * HEAD_DIM + dim] : 0.0f;
      ushort code;
      const ushort scale = puna::coded<BITS>(x, lane, code);
      if (lane < 2) kv[at + 2 * g + lane] = KV(lane ? scale >> 8 : scale & 255);
      if (BITS == 8 && dim < HEAD_DIM) kv[at + CODES_AT + dim] = KV(code);
      const ushort upper = simd_shuffle_xor(code, ushort(16));
      if (BITS == 4 && lane < 16) kv[at + CODES_AT + g * 16 + lane] = KV(code | upper << 4);
    }
  }
