  const Planes<BITS, GROUP, S> weights = {words, scales, biases, ulong(words_shape[1]), ulong(scales_shape[1])};
  const uint N = uint(words_shape[0]);
