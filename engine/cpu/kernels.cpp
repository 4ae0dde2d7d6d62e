// The rows, best first, and the choice among them.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#if defined(__aarch64__)
#include "sme_units.h"
#endif
#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace puna {
namespace {

bool everywhere() { return true; }

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system whether it saves the registers.
bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
const Kernels avx512{"avx512", has_avx512_vnni, &avx512_matmul, &avx512_rows, &avx512_attention};

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
// Compilers learnt the names of AVX-VNNI late: CPUID leaf 7.1, EAX bit 4.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
// Only the products of bytes differ between these two.
const Kernels avx_vnni{"avx_vnni", has_avx_vnni, &avx_vnni_matmul, &avx2_rows, &avx2_attention};
const Kernels avx2{"avx2", has_avx2, &avx2_matmul, &avx2_rows, &avx2_attention};
#endif

#if defined(__aarch64__)
#if defined(__APPLE__)
bool has_feature(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
bool has_i8mm() { return has_dotprod() && getauxval(AT_HWCAP2) & HWCAP2_I8MM; }
#endif
const Kernels neon_dotprod{"neon_dotprod", has_dotprod, &neon_dotprod_matmul, &neon_rows, &neon_attention};
const Kernels neon_i8mm{"neon_i8mm", has_i8mm, &neon_i8mm_matmul, &neon_rows, &neon_attention};
bool has_sme() { return has_i8mm() && has_sme2_512(); }
const Kernels sme{"sme", has_sme, &sme_matmul, &neon_rows, &neon_attention};
#endif

const Kernels portable{"portable", everywhere, &portable_matmul, &portable_rows, &portable_attention};

const Kernels *const in_order[] = {
#if defined(__x86_64__)
    &avx512, &avx_vnni, &avx2,
#endif
#if defined(__aarch64__)
    &sme,
    &neon_i8mm,
    &neon_dotprod,
#endif
    &portable,
};

const Kernels &chosen() {
  const char *forced = std::getenv("PUNA_CPU");
  for (const Kernels *k : in_order) {
    if (forced ? std::string_view(forced) == k->name && k->runs_here() : k->runs_here()) return *k;
  }
  throw std::runtime_error("PUNA_CPU=" + std::string(forced) + ": no such kernels on this CPU");
}

}  // namespace

const Kernels &kernels() {
  static const Kernels &best = chosen();
  return best;
}

}  // namespace puna
