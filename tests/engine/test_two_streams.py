"""Prompts on one stream and decoding on another: each computes what it computes alone."""

from pathlib import Path

import numpy as np

from tests.tiny_models import write_gguf
from tests.two_streams import LayerByLayer, Weights, answers, on_own_stream

CONTEXT = 512
SHORT = [np.random.default_rng(i).integers(5, 300, 5 + i).tolist() for i in range(4)]
LONG = [np.random.default_rng(9).integers(5, 300, 450).tolist() for _ in range(3)]


def test_the_tokens_of_both_streams_are_those_of_each_alone(tmp_path: Path) -> None:
    weights = Weights.of(write_gguf(tmp_path, "llama", kind="q8_0", context=CONTEXT))
    found: dict[str, list[list[int]]] = {}

    def decoding(name: str) -> None:
        found[name] = answers(weights.engine(CONTEXT, 4), SHORT, 60)

    def prompting(name: str) -> None:
        engine = weights.engine(CONTEXT, 1, LayerByLayer)
        found[name] = [answers(engine, [prompt], 1)[0] for prompt in LONG]

    for work, name in ((decoding, "decoding alone"), (prompting, "prompting alone")):
        alone = on_own_stream(lambda work=work, name=name: work(name))  # type: ignore[misc]
        alone.start()
        alone.join()
    both = [on_own_stream(lambda: decoding("decoding")), on_own_stream(lambda: prompting("prompting"))]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [len(answer) for answer in found["decoding"]] == [60] * 4
    assert found["decoding"] == found["decoding alone"]
    assert found["prompting"] == found["prompting alone"]
