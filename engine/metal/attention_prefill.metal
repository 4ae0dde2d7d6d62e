  // A tile of up to 32 neighbouring rows of one sequence, one query head. A simdgroup has 8 rows; of an 8 x 8 fragment a lane holds
  // two neighbouring columns of row `lane_row`. Keys and values come in tiles of a page, 32 tokens at absolute positions, ascending.
  //
  // A tile that a row does not see leaves its sums as they are: its highest score stays, so they are scaled by exp(0) = 1 and
  // get products with the weight zero. For that to hold, values that are no finite numbers are kept out of the products and
  // reach just the rows that see them (`spoils`), and what was never written counts as zero. So a row has the same bits in
  // every tile, whichever rows are beside it.
  constexpr int PAGE = 32, THREADS = 128;
  constexpr int DIMS = HEAD_DIM / 8, TILES = PAGE / 8;
  constexpr int WIDTH = HEAD_DIM + 16 / int(sizeof(S));               // rows in threadgroup memory do not begin in one bank
  constexpr int GROUPS = (HEAD_DIM + 31) / 32, SCALES = BITS > 8 ? 1 : PAGE * GROUPS;
  constexpr bool BOTH = 2 * PAGE * WIDTH * int(sizeof(S)) <= 28000;   // is there room for keys beside values?
  constexpr bool KEPT = HEAD_DIM <= 128;                              // have registers room for queries beside the sums?
  threadgroup S staged[(BOTH ? 2 : 1) * PAGE * WIDTH];
  threadgroup float key_scales[SCALES], value_scales[SCALES];
  threadgroup int spoils[THREADS / 32];
  threadgroup S* staged_values = staged + (BOTH ? PAGE * WIDTH : 0);

  const int thread_ = thread_index_in_threadgroup;
  const int lane = thread_index_in_simdgroup, own = simdgroup_index_in_threadgroup;
  const int lane_row = (lane >> 4 & 1) * 4 + (lane >> 1 & 3), lane_column = (lane >> 3 & 1) * 4 + (lane & 1) * 2;
  const int item = threadgroup_position_in_grid.z, head = threadgroup_position_in_grid.y;
  const int kv_head = head / (HEADS / KV_HEADS);
  const int sequence = work[4 * item], first = work[4 * item + 1], rows = work[4 * item + 2], to = work[4 * item + 3];
  const int start = positions[first];
  const int row = own * 8 + lane_row;
  // The row sees tokens [from, after); its simdgroup any of [any_from, any_after).
  const int after = row < rows ? start + row + 1 : 0, from = WINDOW > 0 ? max(0, after - WINDOW) : 0;
  const int any_after = own * 8 < rows ? start + min(rows, own * 8 + 8) : 0;
  const int any_from = WINDOW > 0 ? max(0, start + own * 8 + 1 - WINDOW) : 0;
  const int all_after = start + own * 8 + 1, all_from = WINDOW > 0 ? max(0, any_after - WINDOW) : 0;
  const int written = start + rows;
  const int first_tile = WINDOW > 0 ? max(0, start + 1 - WINDOW) / PAGE : 0, last_tile = (written - 1) / PAGE;

  const device Q* query = q + (size_t(first + min(row, rows - 1)) * HEADS + head) * HEAD_DIM + lane_column;
  simdgroup_matrix<float, 8, 8> queries[KEPT ? DIMS : 1];
  simdgroup_matrix<float, 8, 8> sums[DIMS];
#pragma clang loop unroll(full)
  for (int d = 0; d < DIMS; ++d) {
    sums[d].thread_elements()[0] = 0;
    sums[d].thread_elements()[1] = 0;
    if (KEPT) {
      queries[KEPT ? d : 0].thread_elements()[0] = float(query[d * 8]) * scale;
      queries[KEPT ? d : 0].thread_elements()[1] = float(query[d * 8 + 1]) * scale;
    }
  }
  float highest = -INFINITY, total = 0;

  for (int tile = first_tile; tile <= last_tile; ++tile) {
    const int base = tile * PAGE;
    const size_t page = tables[sequence * tables_shape[1] + tile];
    const device KV* keys = pool + page * PAGE_STRIDE + kv_head * HEAD_STRIDE;
    const device KV* values = keys + VALUE_STRIDE;
    puna::stage<THREADS, HEAD_DIM, WIDTH, BITS, false>(keys, TOKEN_STRIDE, staged, key_scales, written - base, thread_);
    if (BOTH) {
      const bool met =
          puna::stage<THREADS, HEAD_DIM, WIDTH, BITS, true>(values, TOKEN_STRIDE, staged_values, value_scales, written - base, thread_);
      const bool any = simd_any(met);
      if (lane == 0) spoils[own] = any;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const bool computes = base < any_after && base + PAGE > any_from;
    simdgroup_matrix<float, 8, 8> weights[TILES];
    if (computes) {
#pragma clang loop unroll(full)
      for (int n = 0; n < TILES; ++n) {
        weights[n].thread_elements()[0] = 0;
        weights[n].thread_elements()[1] = 0;
      }
#pragma clang loop unroll(full)
      for (int d = 0; d < DIMS; ++d) {
        simdgroup_matrix<float, 8, 8> eight = queries[KEPT ? d : 0];
        if (!KEPT) {
          eight.thread_elements()[0] = float(query[d * 8]) * scale;
          eight.thread_elements()[1] = float(query[d * 8 + 1]) * scale;
        }
#pragma clang loop unroll(full)
        for (int n = 0; n < TILES; ++n) {
          simdgroup_matrix<float, 8, 8> key;  // row: dim, column: token
#pragma clang loop unroll(full)
          for (int e = 0; e < 2; ++e) {
            const int token = n * 8 + lane_column + e;
            const float number = float(staged[token * WIDTH + d * 8 + lane_row]);
            key.thread_elements()[e] = BITS > 8 ? number : number * key_scales[BITS > 8 ? 0 : token * GROUPS + d / 4];
          }
          simdgroup_multiply_accumulate(weights[n], eight, key, weights[n]);
        }
      }
      // From scores to weights. The four lanes of a row differ in bits 0 and 3.
      const bool whole = base >= all_from && base + PAGE <= all_after;
      float peak = highest;
#pragma clang loop unroll(full)
      for (int n = 0; n < TILES; ++n) {
#pragma clang loop unroll(full)
        for (int e = 0; e < 2; ++e) {
          const int token = base + n * 8 + lane_column + e;
          if (whole || (token >= from && token < after)) peak = fmax(peak, weights[n].thread_elements()[e]);
        }
      }
      peak = fmax(peak, simd_shuffle_xor(peak, ushort(1)));
      peak = fmax(peak, simd_shuffle_xor(peak, ushort(8)));
      const float shrink = peak == highest ? 1.0f : puna::exponential(highest - peak);
      float sum = 0;
#pragma clang loop unroll(full)
      for (int n = 0; n < TILES; ++n) {
#pragma clang loop unroll(full)
        for (int e = 0; e < 2; ++e) {
          const int token = base + n * 8 + lane_column + e;
          const bool seen = whole || (token >= from && token < after);
          const float weight = seen ? puna::exponential(weights[n].thread_elements()[e] - peak) : 0.0f;
          weights[n].thread_elements()[e] = weight;
          sum = sum + weight;
        }
      }
      sum = sum + simd_shuffle_xor(sum, ushort(1));
      sum = sum + simd_shuffle_xor(sum, ushort(8));
      total = fma(total, shrink, sum);
      highest = peak;
#pragma clang loop unroll(full)
      for (int d = 0; d < DIMS; ++d) {
        sums[d].thread_elements()[0] = sums[d].thread_elements()[0] * shrink;
        sums[d].thread_elements()[1] = sums[d].thread_elements()[1] * shrink;
      }
    }
    if (!BOTH) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const bool met =
          puna::stage<THREADS, HEAD_DIM, WIDTH, BITS, true>(values, TOKEN_STRIDE, staged_values, value_scales, written - base, thread_);
      const bool any = simd_any(met);
      if (lane == 0) spoils[own] = any;
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (computes) {
#pragma clang loop unroll(full)
      for (int d = 0; d < DIMS; ++d) {
#pragma clang loop unroll(full)
        for (int n = 0; n < TILES; ++n) {
          simdgroup_matrix<float, 8, 8> value;  // row: token, column: dim
          const int token = n * 8 + lane_row;
#pragma clang loop unroll(full)
          for (int e = 0; e < 2; ++e) {
            const float number = float(staged_values[token * WIDTH + d * 8 + lane_column + e]);
            value.thread_elements()[e] = BITS > 8 ? number : number * value_scales[BITS > 8 ? 0 : token * GROUPS + d / 4];
          }
          simdgroup_multiply_accumulate(sums[d], weights[n], value, sums[d]);
        }
      }
      if (spoils[0] | spoils[1] | spoils[2] | spoils[3]) {
        for (int token = max(from, base); token < min(after, base + PAGE); ++token) {
#pragma clang loop unroll(full)
          for (int d = 0; d < DIMS; ++d) {
            float pair[2];
            puna::numbers<2, HEAD_DIM, BITS>(values + (token - base) * TOKEN_STRIDE, d * 8 + lane_column, pair);
            if (!isfinite(pair[0])) sums[d].thread_elements()[0] = NAN;
            if (!isfinite(pair[1])) sums[d].thread_elements()[1] = NAN;
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  if (row < rows) {
    device Q* result = out + (size_t(to + row) * HEADS + head) * HEAD_DIM + lane_column;
#pragma clang loop unroll(full)
    for (int d = 0; d < DIMS; ++d) {
      for (int e = 0; e < 2; ++e) {
        const float mean = sums[d].thread_elements()[e] / total;
        result[d * 8 + e] = Q(mean == 0 ? 0.0f : mean);  // zero has one sign, whatever was added to it
      }
    }
  }
