  // Tiles of x are neighbours in the grid, so that they read the same weights at about the same time.
  few_rows<ROWS, TILE>(weights, x, y, uint(x_shape[0]), N, uint(x_shape[1]),
                       (threadgroup_position_in_grid.y * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS,
                       threadgroup_position_in_grid.x * TILE, thread_index_in_simdgroup);
