"""Laws of loading, with a tiny model file and MLX's kernels: what the child computes is what the model computes."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from engine import _native
from engine.client import EngineClient
from engine.load import load
from engine.memory import SHARE, memory_need
from engine.messages import EngineSpec, Sampling, Submit
from models.config import config_of
from quant.errors import EngineError, ModelFormatError, NotEnoughMemory
from quant.open import open_checkpoint
from tests.models.passes import Runner
from tests.tiny_models import write_gguf, write_mlx

PROMPT = [(7 * i) % 300 for i in range(600)]  # more than one prefill chunk
GREEDY = Sampling(max_tokens=6, temperature=0)


def greedy(path: Path, tokens: list[int], count: int) -> list[int]:
    """Straight from the model: one sequence, each pass over everything."""
    runner = Runner(path, pages=32)
    answer: list[int] = []
    for _ in range(count):
        history = tokens + answer
        (logits,) = runner.last_logits(history, [len(history)], range(32))
        answer.append(int(logits.argmax()))
    return answer


def test_a_child_answers_from_a_file_as_the_model_does(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", context=1024)

    async def work() -> list[int]:
        client = await EngineClient.start(EngineSpec(path=str(path), device="builtin", kv="f32"))
        try:
            assert (client.ready.context, client.ready.device) == (1024, "builtin")
            return [sampled.token async for delta in client.submit(PROMPT, GREEDY) for sampled in delta.tokens]
        finally:
            await client.close()

    assert asyncio.run(work()) == greedy(path, PROMPT, 6)


def test_a_quantised_folder_is_loaded_and_answers(tmp_path: Path) -> None:
    path = write_mlx(tmp_path, "qwen3", bits=4, context=1024)
    engine = load(EngineSpec(path=str(path), device="builtin")).engine
    engine.submit(Submit(1, PROMPT, GREEDY))
    deltas = [delta for _ in range(8) for delta in engine.step()]
    assert (len(deltas), deltas[-1].finish) == (6, "length")


@pytest.mark.parametrize("kv", ["q8", "q4"])
def test_pages_that_the_device_cannot_read_are_refused_by_the_option(kv: Literal["q8", "q4"], tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama")
    with pytest.raises(EngineError, match=f"--kv-format {kv} is for the CPU device; here it can be f16, bf16, f32"):
        load(EngineSpec(path=str(path), device="builtin", kv=kv))


def test_a_file_that_is_no_model_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time")
    with pytest.raises(ModelFormatError, match=r"text\.gguf: "):
        asyncio.run(EngineClient.start(EngineSpec(path=str(path), device="builtin")))


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", context=2**20)
    spec = EngineSpec(path=str(path), device="builtin", cache_tokens=2**40)
    with pytest.raises(NotEnoughMemory, match="KV cache"):
        load(spec)


def test_a_context_beyond_the_models_own_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama", context=256)
    with pytest.raises(EngineError, match="made for 256"):
        load(EngineSpec(path=str(path), context=257, device="builtin"))


def test_weights_that_outgrow_their_file_are_judged_by_what_they_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path, "llama", kind="q6_k", context=256)  # which MLX's kernels take in float32, five times it
    with open_checkpoint(path) as checkpoint:
        file = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        enough_for_the_file = memory_need(config_of(checkpoint), file, 256, "f32").total / SHARE + 2**16
    monkeypatch.setattr("engine.load.free_memory", lambda: int(enough_for_the_file))
    with pytest.raises(NotEnoughMemory, match="weights"):
        load(EngineSpec(path=str(path), device="builtin", kv="f32"))
    assert load(EngineSpec(path=str(path), device="cpu", kv="f32")).device == "cpu"


def test_a_cpu_that_gives_no_threads_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int) -> None:
        raise RuntimeError("Resource temporarily unavailable")

    monkeypatch.setattr(_native, "set_threads", refuse)
    path = write_gguf(tmp_path, "llama")
    with pytest.raises(EngineError, match="with 77 threads: Resource temporarily unavailable"):
        load(EngineSpec(path=str(path), device="cpu", threads=77))
