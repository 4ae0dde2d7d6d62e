  // A row: its root mean square is a chain of FMAs over every THREADS-th four numbers, summed over lanes, then over simdgroups in
  // ascending order.
  threadgroup float partial[THREADS / 32];
  const int thread_ = thread_index_in_threadgroup, width = x_shape[1];
  const size_t start = size_t(threadgroup_position_in_grid.y) * width;
  float squares = 0;
  for (int at = thread_ * 4; at < width; at += THREADS * 4) {
    for (int i = 0; i < 4; ++i) {
      const float each = float(x[start + at + i]);
      squares = fma(each, each, squares);
    }
  }
  const float inverse = puna::inverse_root<THREADS>(squares, partial, width, eps, thread_);
  for (int at = thread_ * 4; at < width; at += THREADS * 4) {
    for (int i = 0; i < 4; ++i) normed[start + at + i] = Y(float(x[start + at + i]) * inverse * weight[at + i]);
  }
