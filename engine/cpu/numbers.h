// Numbers of a panel's own type, read as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "halves.h"
#include "panels.h"

namespace puna {

// Element i of an array of numbers at p.
inline float number_at(Number number, const uint8_t *p, int64_t i) {
  if (number == Number::f32) {
    float value;
    std::memcpy(&value, p + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, p + 2 * i, 2);
  return number == Number::f16 ? from_f16(bits) : from_bf16(bits);
}

}  // namespace puna
