// What the system says of SME and of the caches.
#include "sme_units.h"

#include "sme.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstdio>
#include <cstring>
#elif defined(__linux__)
#include <sys/auxv.h>
#include <unistd.h>
#endif

namespace puna {
namespace {

#if defined(__APPLE__)
// An integer of either width, 0 if the system does not know the name.
int64_t sysctl_number(const char *name) {
  int64_t value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}

bool system_has_sme2() {
  return sysctl_number("hw.optional.arm.FEAT_SME2") == 1 && sysctl_number("hw.optional.arm.sme_max_svl_b") == 64;
}

// There is one unit for each cluster of cores, and a cluster shares one second-level cache.
SmeUnits ask() {
  SmeUnits units{0, 0};
  const int64_t levels = sysctl_number("hw.nperflevels");
  for (int64_t i = 0; i < levels; ++i) {
    char name[64], key[64];
    const auto number = [&](const char *what) {
      std::snprintf(key, sizeof key, "hw.perflevel%d.%s", static_cast<int>(i), what);
      return sysctl_number(key);
    };
    std::snprintf(key, sizeof key, "hw.perflevel%d.name", static_cast<int>(i));
    size_t size = sizeof name;
    if (sysctlbyname(key, name, &size, nullptr, 0) != 0) continue;
    if (std::strncmp(name, "Performance", 11) != 0 && std::strncmp(name, "Super", 5) != 0) continue;
    const int64_t cores = number("physicalcpu"), sharing = number("cpusperl2"), cache = number("l2cachesize");
    if (cores > 0 && sharing > 0) units.count += static_cast<int>((cores + sharing - 1) / sharing);
    if (cache > 0 && (units.cache_bytes == 0 || cache < units.cache_bytes)) units.cache_bytes = cache;
  }
  return units;
}
#elif defined(__linux__)
constexpr unsigned long HWCAP2_SME2_BIT = 1ul << 37;

bool system_has_sme2() { return (getauxval(AT_HWCAP2) & HWCAP2_SME2_BIT) != 0; }

SmeUnits ask() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return {1, sysconf(_SC_LEVEL2_CACHE_SIZE)};
#else
  return {1, 0};
#endif
}
#else
bool system_has_sme2() { return false; }
SmeUnits ask() { return {0, 0}; }
#endif

}  // namespace

bool has_sme2_512() { return system_has_sme2() && puna_sme_vector_bytes() == 64; }

const SmeUnits &sme_units() {
  static const SmeUnits found = [] {
    SmeUnits units = ask();
    if (units.count < 1) units.count = 1;
    if (units.cache_bytes < 1 << 20) units.cache_bytes = 16 << 20;  // of an M4's fast cluster
    return units;
  }();
  return found;
}

}  // namespace puna
