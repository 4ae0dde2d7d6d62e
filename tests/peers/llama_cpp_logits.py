"""Logits of every position by llama.cpp, for one file. Runs in an environment of its own that has llama-cpp-python.

Usage: llama_cpp_logits.py MODEL TOKENS.npy LOGITS.npy
"""

import sys

import numpy as np
from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    model, tokens_file, logits_file = sys.argv[1:]
    tokens = np.load(tokens_file).tolist()
    llama = Llama(model, n_ctx=len(tokens), n_batch=len(tokens), n_threads=2, logits_all=True, verbose=False)
    llama.eval(tokens)
    np.save(logits_file, llama.scores[: len(tokens)])


main()
