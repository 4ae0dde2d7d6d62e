  const Dense<V> weights = {values, ulong(values_shape[1])};
  const uint N = uint(values_shape[0]);
