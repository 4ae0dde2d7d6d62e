// Rows of weights as numbers: what an embedding is. A thread has one piece of one row.
template <typename M>
inline void row_of(M weights, uint row, uint piece, device float* y) {
  const typename M::Raw raw = M::load(weights.row(row), piece);
#pragma unroll
  for (int g = 0; g < M::GROUPS; g++) {
    const Eight w = M::eight(raw, g);
    device float* out = y + M::first(piece, g);
    for (int i = 0; i < 4; i++) {
      out[i] = w.a[i];
      out[i + 4] = w.b[i];
    }
  }
}
