// The Metal language for the host's C++ compiler: included before every kernel.
//
// Address spaces are words without effect here. Arrays in threadgroup memory are rewritten before they get here, to
// references that METAL_HOST_SHARED makes.
#pragma once

#include "mlx.h"

namespace metal_host {

template <class Array> Array &shared(int key, const char *name) {
    return *static_cast<Array *>(threadgroup_memory(key, name, sizeof(Array), alignof(Array)));
}
inline uint3 as_uint3(Size s) { return uint3(s.x, s.y, s.z); }

} // namespace metal_host

#define __METAL__ 1
#define __METAL_VERSION__ 320
#define __HAVE_BFLOAT__ 1
#define device
#define constant
#define thread
#define threadgroup
#define kernel
#define METAL_HOST_SHARED(key, name) metal_host::shared<metal_host_##name>(key, #name)
