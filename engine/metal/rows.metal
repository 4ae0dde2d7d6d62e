  const ulong K = ulong(threads_per_grid.x) * PIECE;
  const uint t = thread_position_in_grid.y;
  row_of(weights, min(uint(ids[t]), N - 1), thread_position_in_grid.x, y + t * K);
