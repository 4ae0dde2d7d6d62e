"""Address spaces are held apart: a kernel that mixes them does not run on the host, as it would not compile for a GPU.

Metal Shading Language Specification (version 4), chapter 4: a pointer or reference names the space of what it
points to, in the parameters of every function, and none turns into another.
"""

import pytest

from tests.metal_host import spaces
from tests.metal_host.build import CompileError
from tests.metal_host.small import computed, counting

pytestmark = pytest.mark.skipif(not spaces.available(), reason="clang comes with the ziglang package")

MIXED = {
    "a bare pointer to device memory": ("  const float* p = x;\n  y[i] = p[0];", ""),
    "a bare pointer to threadgroup memory": ("  threadgroup float t[64];\n  float* p = t;\n  y[i] = x[i];", ""),
    "a bare parameter": ("  y[i] = first(x);", "inline float first(const float* p) { return p[0]; }\n"),
    "a bare reference": ("  y[i] = 0;\n  add(y[i], x[i]);", "inline void add(float& sum, float x) { sum += x; }\n"),
    "another space in a parameter": (
        "  y[i] = first(x);",
        "inline float first(const threadgroup float* p) { return p[0]; }\n",
    ),
    "another space in a cast": ("  y[i] = *(const threadgroup float*)(x + i);", ""),
    "no space in a C cast": ("  y[i] = ((const uint*)x)[i] + *(const float4*)x[0];", ""),
    "constant for device": ("  const constant float* p = x;\n  y[i] = p[i];", ""),
    "a space forgotten in a cast": ("  y[i] = *reinterpret_cast<const uint*>(x + i);", ""),
    "const forgotten": ("  device float* p = x;\n  y[i] = p[i];", ""),
}


@pytest.mark.parametrize(("body", "header"), MIXED.values(), ids=MIXED)
def test_a_planted_mix_of_address_spaces_is_refused(body: str, header: str) -> None:
    with pytest.raises(CompileError, match=r"small (body|header):\d"):
        computed(body, counting(64), header=header)


def test_pointers_that_name_their_space_are_taken() -> None:
    header = """
struct Pair {
  float first, second;
};
struct Row {
  const device float* at;
  float scale;
  float read(uint k) const { return at[k] * scale; }
};
template <typename T> inline T first(const threadgroup T* p) { return p[0]; }
inline void add(thread float& sum, float x) { sum += x; }
"""
    body = """
      threadgroup float t[64];
      t[l] = x[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const Row row = {x, 2.0f};
      const float4 v = *reinterpret_cast<const device float4*>(x + 4);
      Pair pair = ((const device Pair*)x)[l / 2];
      pair = ((const device Pair*)x)[l / 2];
      if (l % 2 == 0) ((device Pair*)y)[l / 2] = pair;
      threadgroup_barrier(mem_flags::mem_device);
      const half2 h(1, 2);
      simdgroup_float8x8 m(1.0f);
      float sum = v.y + float(h.x * 1.5h);
      add(sum, row.read(i) + first(t) + m.thread_elements()[0] * 0);
      y[i] = sum + 0 * *(const device int*)x + ((const device uchar*)x + 4)[l] * 0;"""
    assert list(computed(body, counting(64), header=header)) == [5 + 1.5 + 2 * k for k in range(64)]
