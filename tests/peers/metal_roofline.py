"""What each kernel for Apple's GPU cannot do without, and the least time that takes, by chip.

Counted, not measured: the bytes that a kernel reads and writes once, the operations that its sums have, and per chip
the larger of both times. `python -m tests.peers.metal_roofline` prints what docs/metal_roofline.md
has, and tests/test_metal_roofline.py holds the page to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.placement import CHIPS

# The 8B shape of Llama 3: width, heads, KV heads, head size, FFN.
WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN = 4096, 32, 8, 128, 14336
TOKENS, PARTITION, PROMPT = 8192, 256, 512
Q4_K, HALF, FLOAT = 4.5 / 8, 2, 4  # bytes
# Of an M5 the published rate is that of its neural accelerators, which only MLX's kernels use; these are its shaders'.
M5 = {"Apple M5": 4.0e12, "Apple M5 Pro": 8.1e12, "Apple M5 Max": 16.2e12}


@dataclass(frozen=True)
class Work:
    kernel: str  # the .metal file, or whose it is
    of: str
    nbytes: float
    operations: float

    def microseconds(self, chip: str) -> float:
        """At the roof: memory and arithmetic go on beside each other."""
        return max(self.nbytes / CHIPS[chip].bandwidth, self.operations / shaders(chip)) * 1e6

    def bound(self, chip: str) -> str:
        return "a" if self.operations / shaders(chip) > self.nbytes / CHIPS[chip].bandwidth else ""


def shaders(chip: str) -> float:
    """Float32 operations a second of the shader cores, which is what our kernels use."""
    return M5.get(chip, CHIPS[chip].gpu)


def few(rows: int) -> Work:
    weights = WIDTH * FFN
    nbytes = weights * Q4_K + rows * (WIDTH + FFN) * HALF
    return Work("matmul_few", f"{rows} x 4096 x 14336, Q4_K", nbytes, 2 * rows * weights)


def many() -> Work:
    weights = WIDTH * FFN
    nbytes = weights * Q4_K + PROMPT * (WIDTH + FFN) * HALF
    return Work("matmul_many", f"{PROMPT} x 4096 x 14336, Q4_K", nbytes, 2 * PROMPT * weights)


def rows() -> Work:
    nbytes = PROMPT * WIDTH * (Q4_K + FLOAT)
    return Work("rows", f"{PROMPT} rows of 4096, Q4_K", nbytes, 2 * PROMPT * WIDTH)


def partials() -> float:
    return FLOAT * HEADS * (HEAD_DIM + 2) * (TOKENS / PARTITION)


def attention_decode() -> Work:
    nbytes = 2 * KV_HEADS * HEAD_DIM * HALF * TOKENS + partials()
    return Work("attention_decode", f"1 row, {TOKENS} tokens", nbytes, 4 * HEADS * HEAD_DIM * TOKENS)


def attention_merge() -> Work:
    parts = TOKENS / PARTITION
    nbytes = partials() + HEADS * HEAD_DIM * HALF
    return Work("attention_merge", f"1 row, {parts:.0f} parts", nbytes, 3 * HEADS * HEAD_DIM * parts)


def attention_prefill(past: int) -> Work:
    seen = sum(past + row + 1 for row in range(PROMPT))
    nbytes = 2 * KV_HEADS * HEAD_DIM * HALF * (past + PROMPT) + 2 * PROMPT * HEADS * HEAD_DIM * HALF
    return Work("attention_prefill", f"{PROMPT} rows behind {past}", nbytes, 4 * HEADS * HEAD_DIM * seen)


def layer_rope() -> Work:
    """Numbers read and written once, and 128 cosines and sines a row; two products and a sum for each that turns."""
    numbers, turning = (HEADS + 2 * KV_HEADS) * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM
    return Work("layer_rope", "512 rows", PROMPT * (2 * numbers * HALF + HEAD_DIM * FLOAT), PROMPT * 3 * turning)


def scatter() -> Work:
    return Work("MLX's scatter", "512 rows", PROMPT * 2 * 2 * KV_HEADS * HEAD_DIM * HALF, 0)


def layer_norm() -> Work:
    return Work("layer_norm", "512 rows", PROMPT * WIDTH * (FLOAT + HALF), PROMPT * WIDTH * 4)


def layer_add_norm() -> Work:
    return Work("layer_add_norm", "512 rows", PROMPT * WIDTH * 2 * (FLOAT + HALF), PROMPT * WIDTH * 6)


def layer_gate() -> Work:
    """The exponential is a polynomial: 20 operations with its ends, and a sum, a quotient and two products."""
    return Work("layer_gate", "512 rows", PROMPT * FFN * 3 * HALF, PROMPT * FFN * 24)


ANSWERS = [few(1), few(8), attention_decode(), attention_merge()]
PROMPTS = [many(), attention_prefill(0), attention_prefill(TOKENS), rows(), layer_rope(), scatter()]
PROMPTS += [layer_norm(), layer_add_norm(), layer_gate()]


def table(works: Sequence[Work]) -> str:
    lines = ["| microseconds | " + " | ".join(f"`{work.kernel}` {work.of}" for work in works) + " |"]
    lines += ["|---" * (len(works) + 1) + "|"]
    sizes = [f"{work.nbytes / 1e6:.3g}, {work.operations / 1e9:.3g}" for work in works]
    lines += ["| MB, G operations | " + " | ".join(sizes) + " |"]
    for chip in CHIPS:
        cells = [f"{_rounded(work.microseconds(chip))} {work.bound(chip)}".strip() for work in works]
        lines.append(f"| {chip.removeprefix('Apple ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rounded(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 10 else f"{microseconds:.1f}"


def main() -> None:
    print(table(ANSWERS), table(PROMPTS), sep="\n\n")


if __name__ == "__main__":
    main()
