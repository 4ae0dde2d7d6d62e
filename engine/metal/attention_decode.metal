  // Of one sequence's step, up to ROWS rows and the SHARE query heads that read the same KV head: what they make of one partition,
  // 256 tokens at absolute positions. A simdgroup takes a page of 32 tokens, a lane EACH neighbouring dims.
  //
  //     scores    QUERIES * TOKENS = 32 at a time, each a chain of FMAs in its lanes, then summed over the lanes
  //     weights   exp(score - highest of the partition); their sum over a page pairs tokens at distance 16, 8, 4, 2, 1
  //     values    a chain of FMAs over the page's tokens, ascending; then pages 4 apart, 2 apart, 1 apart
  //
  // None of these orders depends on ROWS, SHARE or QUERIES, so a row has the same bits alone and beside others. No token that a
  // row does not see touches its sums, not even with the weight zero: pages hold anything where nothing was written.
  constexpr int PAGES = 8, PAGE = 32;
  constexpr int GROUP = HEADS / KV_HEADS;
  constexpr int PARTS = (GROUP + SHARE - 1) / SHARE;
  constexpr int TOKENS = PAGE / QUERIES;
  constexpr int EACH = HEAD_DIM <= 64 ? 2 : HEAD_DIM <= 128 ? 4 : 8;
  constexpr int WEIGHTS = PAGES * PAGE * QUERIES, FOLDED = PAGES / 2 * QUERIES * HEAD_DIM;
  threadgroup float shared[WEIGHTS > FOLDED ? WEIGHTS : FOLDED];
  threadgroup float maxima[PAGES * QUERIES];
  threadgroup float totals[PAGES * QUERIES];

  const int lane = thread_index_in_simdgroup;
  const int own = simdgroup_index_in_threadgroup;  // page of the partition
  const int item = threadgroup_position_in_grid.z;
  const int kv_head = int(threadgroup_position_in_grid.y) / PARTS;
  const int head = kv_head * GROUP + int(threadgroup_position_in_grid.y) % PARTS * SHARE;
  const int heads = min(SHARE, (kv_head + 1) * GROUP - head);
  const int sequence = work[4 * item], partition = work[4 * item + 1], first = work[4 * item + 2], rows = work[4 * item + 3];
  const bool reads = lane * EACH < HEAD_DIM;

  // Row r sees tokens [from[r], to[r]) of the page; any of them [begin, end). Rows ascend.
  int from[ROWS], to[ROWS], end = 0;
  const int base = (partition * PAGES + own) * PAGE;
  for (int r = 0; r < ROWS; ++r) {
    const int after = r < rows ? positions[first + r] + 1 : 0;
    to[r] = clamp(after - base, 0, PAGE);
    from[r] = WINDOW > 0 ? clamp(after - WINDOW - base, 0, PAGE) : 0;
    end = max(end, to[r]);
  }
  const int begin = from[0];
  const size_t page = begin < end ? tables[sequence * tables_shape[1] + partition * PAGES + own] : 0;
  const device KV* keys = pool + page * PAGE_STRIDE + kv_head * HEAD_STRIDE;
  const device KV* values = keys + VALUE_STRIDE;

  float query[QUERIES][EACH];
  for (int i = 0; i < QUERIES; ++i) {
    const int r = i / SHARE, h = i % SHARE;
    for (int e = 0; e < EACH; ++e) query[i][e] = 0;
    if (r < ROWS && r < rows && h < heads && reads) {
      const size_t at = (size_t(first + r) * HEADS + head + h) * HEAD_DIM + lane * EACH;
      for (int e = 0; e < EACH; ++e) query[i][e] = float(q[at + e]) * scale;
    }
  }

  // In step s, lane l holds the score of query l % QUERIES and token s * TOKENS + l / QUERIES.
  const int mine = lane % QUERIES, next = lane / QUERIES;
  int mine_from = 0, mine_to = 0;
  for (int r = 0; r < ROWS; ++r) {
    if (r == mine / SHARE) {
      mine_from = from[r];
      mine_to = to[r];
    }
  }
  float score[QUERIES];
  float highest = -INFINITY;
#pragma clang loop unroll(full)
  for (int s = 0; s < QUERIES; ++s) {
    score[s] = 0;
    const int start = s * TOKENS;
    if (start < end && start + TOKENS > begin) {
      float sums[32];
#pragma clang loop unroll(full)
      for (int t = 0; t < TOKENS; ++t) {
        float key[EACH];
        for (int e = 0; e < EACH; ++e) key[e] = 0;
        if (start + t >= begin && start + t < end && reads) {
          puna::numbers<EACH, HEAD_DIM, BITS>(keys + (start + t) * TOKEN_STRIDE, lane * EACH, key);
        }
#pragma clang loop unroll(full)
        for (int i = 0; i < QUERIES; ++i) {
          float sum = 0;
          for (int e = 0; e < EACH; ++e) sum = fma(query[i][e], key[e], sum);
          sums[t * QUERIES + i] = sum;
        }
      }
      score[s] = puna::dealt(sums, lane);
    }
    if (start + next >= mine_from && start + next < mine_to) highest = fmax(highest, score[s]);
  }
  for (ushort distance = 16; distance >= QUERIES; distance /= 2) highest = fmax(highest, simd_shuffle_xor(highest, distance));
  if (lane < QUERIES) maxima[own * QUERIES + lane] = highest;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int p = 0; p < PAGES; ++p) highest = fmax(highest, maxima[p * QUERIES + mine]);

  float weight[QUERIES];
#pragma clang loop unroll(full)
  for (int s = 0; s < QUERIES; ++s) {
    const int token = s * TOKENS + next;
    weight[s] = token >= mine_from && token < mine_to ? puna::exponential(score[s] - highest) : 0.0f;
    shared[(own * PAGE + token) * QUERIES + mine] = weight[s];
  }
#pragma clang loop unroll(full)
  for (int half_ = QUERIES / 2; half_ > 0; half_ /= 2) {
    for (int s = 0; s < half_; ++s) weight[s] = weight[s] + weight[s + half_];
  }
  for (ushort distance = 16; distance >= QUERIES; distance /= 2) weight[0] = weight[0] + simd_shuffle_xor(weight[0], distance);
  if (lane < QUERIES) totals[own * QUERIES + lane] = weight[0];
  simdgroup_barrier(mem_flags::mem_threadgroup);

  float sum[QUERIES][EACH];
  for (int i = 0; i < QUERIES; ++i) {
    for (int e = 0; e < EACH; ++e) sum[i][e] = 0;
  }
  for (int at = begin; at < end; at += 4) {
    float value[4][EACH];
#pragma clang loop unroll(full)
    for (int u = 0; u < 4; ++u) {
      for (int e = 0; e < EACH; ++e) value[u][e] = 0;
      if (at + u < end && reads) puna::numbers<EACH, HEAD_DIM, BITS>(values + (at + u) * TOKEN_STRIDE, lane * EACH, value[u]);
    }
#pragma clang loop unroll(full)
    for (int u = 0; u < 4; ++u) {
#pragma clang loop unroll(full)
      for (int r = 0; r < ROWS; ++r) {
        if (at + u >= from[r] && at + u < to[r]) {
#pragma clang loop unroll(full)
          for (int h = 0; h < SHARE; ++h) {
            const float w = shared[(own * PAGE + at + u) * QUERIES + r * SHARE + h];
            for (int e = 0; e < EACH; ++e) sum[r * SHARE + h][e] = fma(w, value[u][e], sum[r * SHARE + h][e]);
          }
        }
      }
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup);  // the weights were read; what follows lies in their place
  for (int half_ = PAGES / 2; half_ > 0; half_ /= 2) {
    if (own >= half_ && own < 2 * half_ && reads) {
#pragma clang loop unroll(full)
      for (int i = 0; i < ROWS * SHARE; ++i) {
        for (int e = 0; e < EACH; ++e) shared[((own - half_) * QUERIES + i) * HEAD_DIM + lane * EACH + e] = sum[i][e];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (own < half_ && reads) {
#pragma clang loop unroll(full)
      for (int i = 0; i < ROWS * SHARE; ++i) {
        for (int e = 0; e < EACH; ++e) sum[i][e] = sum[i][e] + shared[(own * QUERIES + i) * HEAD_DIM + lane * EACH + e];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  // What comes out for a row and head: HEAD_DIM sums of weighted values, the highest score, the sum of the weights.
  if (own == 0) {
#pragma clang loop unroll(full)
    for (int i = 0; i < ROWS * SHARE; ++i) {
      if (i % SHARE < heads && reads) {
        const size_t at = ((size_t(item) * ROWS + i / SHARE) * HEADS + head + i % SHARE) * (HEAD_DIM + 2) + lane * EACH;
        for (int e = 0; e < EACH; ++e) partials[at + e] = sum[i][e];
      }
    }
    if (lane < ROWS * SHARE && lane % SHARE < heads) {
      float total = 0;
      for (int p = 0; p < PAGES; ++p) total = total + totals[p * QUERIES + lane];
      const size_t at = ((size_t(item) * ROWS + lane / SHARE) * HEADS + head + lane % SHARE) * (HEAD_DIM + 2) + HEAD_DIM;
      partials[at] = highest;
      partials[at + 1] = total;
    }
  }
