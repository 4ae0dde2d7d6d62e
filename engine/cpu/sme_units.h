// Who has SME, how many units of it, and how large the cache is that each reads from.
#pragma once

#include <cstdint>

namespace puna {

struct SmeUnits {
  int count;            // of the fast clusters; the slow cluster's unit has a fifth of their rate and is left alone
  int64_t cache_bytes;  // the second-level cache of a cluster
};

// SME2 with streaming vectors of 512 bits, which the kernels are written for.
bool has_sme2_512();
const SmeUnits &sme_units();

}  // namespace puna
