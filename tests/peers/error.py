"""Error of the logits against float64 arithmetic on the decoded weights: Puna's beside llama.cpp's, on the same files.

Usage: python -m tests.peers.error --peer PYTHON [--models N]
PYTHON is the interpreter of an environment with llama-cpp-python and numpy. The models are tiny, of random weights; a
figure is the root mean square of the error over that of the logits, its geometric mean over N models.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from engine import _native
from engine.batch import Batch, Span
from engine.native_ops import NativeOps, NativePool
from engine.native_weights import NativeLoader
from kvcache.pages import PAGE
from models.config import config_of
from models.llama import Llama
from quant.formats import FORMATS
from quant.gguf_file import GGUFFile
from quant.open import open_checkpoint
from tests.exact_ops import ExactLoader, exact_logits
from tests.tiny_models import write_gguf

TOKENS = 96


def native_logits(model: Llama, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Logits of every position: position by position, as decoding computes them."""
    pages = list(range(-(-len(tokens) // PAGE)))
    pool = NativePool(model.config, len(pages), len(tokens), mx.float16)
    rows = []
    for at, token in enumerate(tokens):
        ops = NativeOps(model.config, pool, Batch.of([Span([token], at, pages, True)]))
        rows.append(np.array(model.forward(ops)))
    return np.concatenate(rows)


def errors(kind: str, seed: int, peer: str) -> tuple[float, float]:
    """Relative errors of Puna and of llama.cpp on one random model."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        path = write_gguf(here, "llama", kind=kind, seed=seed, width=256, ffn=512, head_dim=64, layers=4)
        tokens = np.random.default_rng(seed).integers(5, 300, TOKENS)
        with open_checkpoint(path) as checkpoint:
            assert isinstance(checkpoint, GGUFFile)
            config = config_of(checkpoint)
            exact = exact_logits(Llama.load(config, checkpoint, ExactLoader()), config, tokens.tolist())
            ours = native_logits(Llama.load(config, checkpoint, NativeLoader()), tokens.tolist())
        np.save(here / "tokens.npy", tokens)
        script = Path(__file__).with_name("llama_cpp_logits.py")
        subprocess.run([peer, script, path, here / "tokens.npy", here / "logits.npy"], check=True)
        theirs = np.load(here / "logits.npy")
    return relative(ours, exact), relative(theirs, exact)


def relative(got: npt.NDArray[np.float32], exact: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--models", type=int, default=5)
    asked = parser.parse_args()
    _native.set_threads(2)
    print(f"| format | Puna ({_native.kernels()}) | llama.cpp | ratio |\n| --- | --- | --- | --- |")
    for kind in FORMATS:
        pairs = [errors(kind, seed, asked.peer) for seed in range(asked.models)]
        ours, theirs = (geometric_mean(column) for column in zip(*pairs, strict=True))
        print(f"| {kind} | {ours:.3e} | {theirs:.3e} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
