"""Cases of paged attention, run by the native primitive; as a program, prints the bits of each."""

import hashlib
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine import _native

Floats = npt.NDArray[np.float32]
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    rope_dims: int
    interleaved: bool
    window: int
    dtype: mx.Dtype
    sequences: tuple[tuple[int, int], ...]  # tokens before the pass, tokens of the pass
    head_norms: bool


CASES = {
    "grouped, interleaved, float32": Case(8, 2, 32, 32, True, 0, mx.float32, ((0, 5), (300, 1), (31, 3)), False),
    "partial rope, head norms, odd width": Case(6, 2, 80, 64, False, 0, mx.float32, ((250, 20),), True),
    "window inside a partition, float16": Case(4, 4, 128, 128, False, 100, mx.float16, ((280, 9),), False),
    "window over two partitions": Case(2, 1, 64, 64, False, 300, mx.float16, ((500, 40),), False),
    "seven heads share one, bfloat16": Case(7, 1, 64, 64, True, 0, mx.bfloat16, ((40, 2), (0, 33)), True),
    "width 256": Case(2, 2, 256, 256, False, 0, mx.float16, ((3, 1), (255, 2)), False),
    "8 bits": Case(8, 2, 64, 64, False, 0, mx.int8, ((300, 1), (0, 37), (31, 3)), False),
    "8 bits, odd width, window": Case(6, 2, 80, 64, False, 50, mx.int8, ((250, 20),), True),
    "8 bits, half a group": Case(4, 2, 16, 16, True, 0, mx.int8, ((20, 20),), False),
    "8 bits, width 256": Case(9, 1, 256, 256, False, 0, mx.int8, ((3, 1), (255, 2)), False),
    "4 bits": Case(8, 2, 64, 64, False, 0, mx.uint8, ((300, 1), (0, 37), (31, 3)), False),
    "4 bits, odd width, window": Case(6, 2, 80, 64, False, 50, mx.uint8, ((250, 20),), True),
    "4 bits, half a group": Case(4, 2, 16, 16, True, 0, mx.uint8, ((20, 20),), False),
    "4 bits, three groups": Case(7, 1, 96, 96, False, 0, mx.uint8, ((40, 2), (0, 33)), False),
    "4 bits, three groups and a half": Case(4, 2, 112, 112, False, 0, mx.uint8, ((10, 40),), False),
    "4 bits, width 128": Case(2, 2, 128, 128, False, 0, mx.uint8, ((3, 1), (255, 2)), False),
}


class Run:
    """One case with its inputs and a pool whose unused memory is NaN."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int) -> Floats:
            return rng.standard_normal(shape, np.float32)

        self.case = case
        lengths = [past + new for past, new in case.sequences]
        self.q = [normal(n, case.heads * case.head_dim) for n in lengths]
        self.k = [normal(n, case.kv_heads * case.head_dim) for n in lengths]
        self.v = [normal(n, case.kv_heads * case.head_dim) for n in lengths]
        self.rope = normal(max(lengths), case.rope_dims)
        self.norms = (normal(case.head_dim), normal(case.head_dim)) if case.head_norms else None
        width = -(-max(lengths) // _native.PAGE)
        ids = rng.permutation(width * len(lengths) + 3)[: width * len(lengths)]
        self.tables = ids.reshape(len(lengths), width).astype(np.int32)
        elements = _native.page_elements(case.kv_heads, case.head_dim, case.dtype)
        garbage = np.full((width * len(lengths) + 3, elements * case.dtype.size), 0xFF, np.uint8)
        self.pages = mx.array(garbage).view(case.dtype)
        mx.eval(self.pages)

    def attend(self, spans: list[tuple[int, int, int]]) -> Floats:
        """One pass over (sequence, past, new) spans."""
        c = self.case
        chosen = [sequence for sequence, _, _ in spans]
        plan = _native.AttentionPlan.of(
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5,
            window=c.window,
            eps=EPS,
            interleaved=c.interleaved,
            starts=np.cumsum([0, *(new for _, _, new in spans)]).astype(np.int32),
            past=np.array([past for _, past, _ in spans], np.int32),
            tables=np.ascontiguousarray(self.tables[chosen]),
            rope=mx.array(self.rope),
        )

        def rows(parts: list[Floats]) -> mx.array:
            return mx.array(np.concatenate([parts[s][p : p + n] for s, p, n in spans]))

        norms = [mx.array(w) for w in self.norms] if self.norms else [None, None]
        return np.array(_native.attend(plan, self.pages, rows(self.q), rows(self.k), rows(self.v), *norms))

    def together(self) -> Floats:
        """The pass of the case: all sequences in one batch, after each one's past was written whole."""
        for sequence, (past, _) in enumerate(self.case.sequences):
            if past:
                self.attend([(sequence, 0, past)])
        return self.attend([(i, past, new) for i, (past, new) in enumerate(self.case.sequences)])

    def token_by_token(self) -> Floats:
        """The same rows, each sequence alone and one token a pass from its start."""
        rows = []
        for sequence, (past, new) in enumerate(self.case.sequences):
            steps = [self.attend([(sequence, at, 1)]) for at in range(past + new)]
            rows += steps[past:]
        return np.concatenate(rows)


if __name__ == "__main__":
    for name, case in CASES.items():
        print(name, hashlib.sha256(Run(case).together().tobytes()).hexdigest())
