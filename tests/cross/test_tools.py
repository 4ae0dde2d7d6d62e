"""The toolchain itself: a program made here for another CPU runs, and that CPU is what its tests take it for."""

from pathlib import Path

from tests.cross.tools import APPLE_M4, LINUX, compiled, ran

PROGRAM = """
#include <arm_neon.h>
#include <cstdint>
#include <cstdio>

int main() {
  int64_t bytes = 0;  // of a streaming vector; legal outside of streaming mode
  asm("rdsvl %0, #1" : "=r"(bytes));
  std::printf("%lld %g\\n", static_cast<long long>(bytes), vaddvq_f32(vdupq_n_f32(0.25f)));
}
"""


def test_a_program_for_aarch64_runs_on_an_emulated_apple_cpu(tmp_path: Path) -> None:
    source = tmp_path / "hello.cpp"
    source.write_text(PROGRAM)
    program = compiled([source], LINUX, ["-mcpu=generic+sme"], tmp_path)
    assert ran(program, cpu=APPLE_M4) == "64 1\n"
