  threadgroup float4 xs[TILE_ROWS * Pitch<EX>::X * sizeof(EX) / 16];  // also where y is gathered: at least 4 KB
  threadgroup float4 ws[TILE_DEPTH * Pitch<EW>::W * sizeof(EW) / 16];
  many_rows(weights, x, y, uint(x_shape[0]), N, uint(x_shape[1]), threadgroup_position_in_grid.x * TILE_ROWS,
            threadgroup_position_in_grid.y * TILE_COLS, (threadgroup EX*)xs, (threadgroup EW*)ws,
            thread_index_in_threadgroup, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
