  // silu(gate) * up, four numbers a thread.
  const size_t at = size_t(thread_position_in_grid.x) * 4;
  for (int i = 0; i < 4; ++i) {
    const float g = float(gate[at + i]);
    gated[at + i] = Y(g / (1.0f + puna::exponential(-g)) * float(up[at + i]));
  }
