  const Blocks<FORMAT> weights = {blocks, ulong(blocks_shape[1])};
  const uint N = uint(blocks_shape[0]);
