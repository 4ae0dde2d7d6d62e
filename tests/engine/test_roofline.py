"""Laws of the roofline, on numbers worked by hand for the shape of Llama-3.2-1B."""

from dataclasses import replace

import pytest

from engine.memory import token_bytes
from engine.roofline import Stored, Weights, Work, bound, decode_work, prefill_work
from models.config import AttentionShape, ModelConfig
from models.rope import Rope

WIDTH, FFN, VOCAB, LAYERS = 2048, 8192, 128256, 16
CONFIG = ModelConfig(
    architecture="llama",
    name="1B",
    vocab=VOCAB,
    width=WIDTH,
    layers=LAYERS,
    ffn=FFN,
    eps=1e-5,
    context=131072,
    attention=AttentionShape(
        heads=32, kv_heads=8, head_dim=64, scale=0.125, rope=Rope(dims=64, theta=5e5, interleaved=True), window=None
    ),
    tied=True,
    qkv_bias=False,
    head_norms=False,
)
KV = token_bytes(CONFIG)

# Multiply-adds of one row, by hand: q and out 2048 x 2048, k and v 512 x 2048; three of 8192 x 2048; the head.
ATTENTION, MLP, HEAD = 10_485_760, 50_331_648, 262_668_288
KEYS_VALUES, REST = 2_097_152, 8_388_608  # of ATTENTION: k and v; q and out


def weights(*, dense: bool = False, tied: bool = True) -> Weights:
    def stored(rows: int, cols: int) -> Stored:
        return Stored(rows, cols, rows * cols // 2, dense)

    mlp = [stored(FFN, WIDTH), stored(FFN, WIDTH), stored(WIDTH, FFN)]
    attention = [stored(WIDTH, WIDTH), stored(512, WIDTH), stored(512, WIDTH), stored(WIDTH, WIDTH)]
    table = stored(VOCAB, WIDTH)
    q, k, v, out = attention
    return Weights(table, [*(attention + mlp) * (LAYERS - 1), k, v], [q, out, *mlp, table], tied)


def test_a_token_reads_every_weight_once_and_the_keys_and_values_it_sees() -> None:
    assert KV == 32768
    work = decode_work(CONFIG, weights(), KV, [8192])
    assert work.nbytes == LAYERS * (ATTENTION + MLP) // 2 + HEAD // 2 + 8192 * 32768
    assert work.int8 == 2 * (LAYERS * (ATTENTION + MLP) + HEAD) == 2_471_493_632
    assert work.fp32 == 4 * 16 * 2048 * 8192 == 1_073_741_824


def test_sequences_that_decode_at_once_share_the_weights_alone() -> None:
    one, eight = decode_work(CONFIG, weights(), KV, [100]), decode_work(CONFIG, weights(), KV, [100] * 8)
    assert eight.nbytes - one.nbytes == 7 * 100 * 32768
    assert (eight.int8, eight.fp32) == (8 * one.int8, 8 * one.fp32)


def test_an_embedding_that_is_not_the_head_gives_a_row_for_each_token() -> None:
    tied, apart = (decode_work(CONFIG, weights(tied=tied), KV, [1, 1, 1]) for tied in (True, False))
    assert apart.nbytes - tied.nbytes == 3 * 1024


def test_only_the_last_row_of_a_prompt_needs_more_of_the_last_layer_than_keys_and_values() -> None:
    work = prefill_work(CONFIG, weights(), 512)
    assert work.int8 == 2 * (512 * (15 * (ATTENTION + MLP) + KEYS_VALUES) + REST + MLP + HEAD)
    assert work.int8 == 936_945_647_616
    assert work.fp32 == 8192 * (15 * 512 * 513 // 2 + 512)


def test_a_prompt_of_one_token_is_a_step_of_decoding() -> None:
    prefill, decode = prefill_work(CONFIG, weights(), 1), decode_work(CONFIG, weights(), 0, [1])
    assert prefill == decode


def test_dense_weights_are_multiplied_in_float32() -> None:
    coded, dense = (prefill_work(CONFIG, weights(dense=dense), 512) for dense in (False, True))
    assert (dense.int8, dense.fp32) == (0, coded.int8 + coded.fp32)


def test_a_window_bounds_what_is_seen() -> None:
    windowed = replace(CONFIG, attention=replace(CONFIG.attention, window=4))
    assert prefill_work(windowed, weights(), 6).fp32 == 8192 * (15 * (1 + 2 + 3 + 4 + 4 + 4) + 4)
    assert decode_work(windowed, weights(), KV, [6]).fp32 == 131_072 * 4


def test_the_slower_of_memory_and_arithmetic_is_the_limit() -> None:
    work = Work(nbytes=100, int8=400, fp32=60)
    memory, arithmetic = bound(work, 10, 100, 20), bound(work, 20, 100, 20)
    assert memory is not None
    assert arithmetic is not None
    assert (memory.seconds, memory.name) == (10, "memory")
    assert (arithmetic.seconds, arithmetic.name) == (7, "arithmetic")


def test_without_peaks_memory_is_the_limit_and_without_a_read_rate_there_is_none() -> None:
    work = Work(nbytes=100, int8=400, fp32=60)
    memory = bound(work, 20, None, None)
    assert memory is not None
    assert memory.seconds == 5
    assert bound(work, None, 1, 1) is None


def test_the_1b_shape_prefills_483_tokens_a_second_on_two_cores_of_zen_4() -> None:
    """945 Gop/s of int8 and 236 of float32: 0.9915 s of matrices and 0.0684 s of attention."""
    limit = bound(prefill_work(CONFIG, weights(), 512), 36e9, 945e9, 236e9)
    assert limit is not None
    assert 512 / limit.seconds == pytest.approx(483.1, abs=0.1)
