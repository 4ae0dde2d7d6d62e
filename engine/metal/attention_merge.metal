  // One row and head: its partitions in ascending order, each weighed by the exponential of the distance of its highest score to
  // the highest of all. Only partitions that the row sees are listed, so none is empty.
  const int dim = thread_position_in_threadgroup.x;
  const int head = threadgroup_position_in_grid.y, row = threadgroup_position_in_grid.z;
  const int first = parts[4 * row], count = parts[4 * row + 1], place = parts[4 * row + 2];
  const size_t step = size_t(ROWS) * HEADS * (HEAD_DIM + 2);
  const size_t start = ((size_t(first) * ROWS + place) * HEADS + head) * (HEAD_DIM + 2);
  float highest = -INFINITY;
  for (int i = 0; i < count; ++i) highest = fmax(highest, partials[start + i * step + HEAD_DIM]);
  float total = 0, sum = 0;
  for (int i = 0; i < count; ++i) {
    const size_t at = start + i * step;
    const float weight = puna::exponential(partials[at + HEAD_DIM] - highest);
    total = fma(partials[at + HEAD_DIM + 1], weight, total);
    sum = fma(partials[at + dim], weight, sum);
  }
  out[(size_t(row) * HEADS + head) * HEAD_DIM + dim] = Q(sum / total);
