"""Laws of placement: a function of rates alone, settled by the table of chips, refused where it cannot be had."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import placement
from engine.chips import BANDWIDTHS
from engine.load import load
from engine.messages import EngineSpec
from engine.pace import PREFILL
from engine.placement import CHIPS, Asked, Placement, Rates, contention, expected, place, settle
from quant.errors import EngineError
from tests.tiny_models import write_gguf

EIGHT_BILLION = (16e9, 5e9)  # operations of a token, bytes of 4-bit weights
RATE = st.floats(1, 1e5)
CPU_OR_AUTO: tuple[Asked, ...] = ("auto", "cpu")


def on_paper(name: str) -> Rates:
    return expected(CHIPS[f"Apple {name}"], *EIGHT_BILLION)


def test_every_chip_whose_bandwidth_is_known_has_rates() -> None:
    assert CHIPS.keys() == BANDWIDTHS.keys()


@pytest.mark.parametrize("name", CHIPS)
def test_on_paper_no_chip_gains_enough(name: str) -> None:
    """M1 to M3 have no SME; an M4's reaches about half of its GPU's rate, an M5's a fifth and less."""
    rates = expected(CHIPS[name], *EIGHT_BILLION)
    assert place(rates).where == "gpu"
    assert (rates.cpu_prefill is None) == (name.split()[1] in ("M1", "M2", "M3"))


@pytest.mark.parametrize(
    ("name", "share"),
    [("M4", 0.52), ("M4 Pro", 0.52), ("M4 Max", 0.26), ("M5", 0.15), ("M5 Pro", 0.22), ("M5 Max", 0.11)],
)
def test_the_cpus_share_of_the_gpus_rate_is_as_the_page_says(name: str, share: float) -> None:
    rates = on_paper(name)
    assert rates.cpu_prefill is not None
    assert rates.cpu_prefill / rates.gpu_prefill == pytest.approx(share, abs=0.006)
    assert contention(rates) == placement.ASSUMED_CONTENTION  # the memory's part is smaller


@pytest.mark.parametrize("name", ["M4", "M4 Pro", "M4 Max"])
def test_measured_rates_decide_otherwise_where_they_are_otherwise(name: str) -> None:
    """An M4 whose CPU keeps up with its GPU."""
    rates = on_paper(name)
    assert place(Rates(rates.gpu_prefill, 0.9 * rates.gpu_prefill, rates.gpu_decode)).where == "cpu"


@given(gpu=RATE, share=st.floats(0.01, 4), decode=RATE, lost=st.floats(0, 0.9), scale=st.floats(0.01, 100))
def test_only_ratios_count(gpu: float, share: float, decode: float, lost: float, scale: float) -> None:
    rates = Rates(gpu, share * gpu, decode, lost)
    scaled = Rates(scale * gpu, share * (scale * gpu), scale * decode, lost)
    if abs(margin(rates)) > 1e-6:
        assert place(rates).where == place(scaled).where


def margin(rates: Rates) -> float:
    """How much more is lost by a GPU that is wrong than by a CPU that is."""
    assert rates.cpu_prefill is not None
    s, c = rates.cpu_prefill / rates.gpu_prefill, contention(rates)
    return 0.0 if c >= 1 else s + 1 - c - max(1 / s, 1 / (1 - c))


@given(gpu=RATE, share=st.floats(0.01, 4), more=st.floats(1, 4), decode=st.floats(100, 1e5), lost=st.floats(0, 0.9))
def test_a_faster_cpu_never_loses_the_prompts(
    gpu: float, share: float, more: float, decode: float, lost: float
) -> None:
    """As long as the memory is not what it competes for."""
    slower, faster = Rates(gpu, share * gpu, decode, lost), Rates(gpu, share * more * gpu, decode, lost)
    if place(slower).where == "cpu" and contention(faster) == lost:
        assert place(faster).where == "cpu"


@given(gpu=RATE, share=st.floats(0.01, 4), decode=RATE, lost=st.floats(0, 0.5), more=st.floats(0, 0.5))
def test_more_contention_never_brings_them_to_the_cpu(
    gpu: float, share: float, decode: float, lost: float, more: float
) -> None:
    if place(Rates(gpu, share * gpu, decode, lost + more)).where == "cpu":
        assert place(Rates(gpu, share * gpu, decode, lost)).where == "cpu"


def test_below_the_golden_ratio_nothing_is_worth_it_and_above_it_is() -> None:
    """Without contention the two losses are 1/s and 1+s, which are equal at 0.618."""
    assert place(Rates(1000, 617, 1e6, 0)).where == "gpu"
    assert place(Rates(1000, 619, 1e6, 0)).where == "cpu"


def test_a_cpu_that_takes_all_of_the_memory_gets_no_prompts() -> None:
    """It reads the weights once for each pass of prompts, as decoding does for each token."""
    assert contention(Rates(1e5, 5 * PREFILL, 10)) == 0.5
    assert place(Rates(5 * PREFILL, 10 * PREFILL, 10)).where == "gpu"


def test_the_policy_sees_nothing_but_rates() -> None:
    """By law 1 a placement by load would be a fault."""
    assert [*inspect.signature(place).parameters] == ["rates"]
    assert {*Rates.__dataclass_fields__} == {"gpu_prefill", "cpu_prefill", "gpu_decode", "contention"}


def test_on_one_device_everything_is_there() -> None:
    for asked in CPU_OR_AUTO:
        found = settle(asked, "", *EIGHT_BILLION, on_gpu=False, native=True)
        assert (found.where, found.beside) == ("cpu", False)
    for native in (True, False):
        with pytest.raises(EngineError, match="--prefill gpu: the model is on the CPU"):
            settle("gpu", "", *EIGHT_BILLION, on_gpu=False, native=native)


def on_gpu(asked: Asked, chip: str) -> Placement:
    return settle(asked, chip, *EIGHT_BILLION, on_gpu=True, native=False)


def test_who_asks_gets_it_on_any_chip_and_on_paper_nobody_else_does() -> None:
    for name in (*CHIPS, "Apple M9", ""):
        assert on_gpu("cpu", name) == Placement("cpu", "as asked", beside=True)
        assert on_gpu("gpu", name) == Placement("gpu", "as asked")
        found = on_gpu("auto", name)
        assert (found.where, found.beside) == ("gpu", False)
        assert found.reason


def test_a_chip_whose_rates_say_so_gets_its_prompts_to_the_cpu_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    m4 = CHIPS["Apple M4"]
    monkeypatch.setattr(placement, "CHIPS", {"Apple M4": replace(m4, sme=2 * m4.sme)})
    found = on_gpu("auto", "Apple M4")
    assert (found.where, found.beside) == ("cpu", True)
    assert "1.05 of the GPU's rate" in found.reason


def test_mlx_on_a_cpu_stands_in_for_a_gpu_if_asked() -> None:
    assert settle("cpu", "", *EIGHT_BILLION, on_gpu=False, native=False).beside
    assert not settle("auto", "", *EIGHT_BILLION, on_gpu=False, native=False).beside


def test_a_reason_has_the_numbers() -> None:
    reason = on_gpu("auto", "Apple M4").reason
    assert "0.52 of the GPU's rate" in reason
    assert "1.91 times as long" in reason
    assert on_gpu("auto", "Apple M2").reason == "the CPU has no matrix unit for prompts"
    assert on_gpu("auto", "Apple M9").reason == "the chip's rates are not known"


def test_an_engine_says_where_its_prompts_go_and_refuses_what_it_cannot_have(tmp_path: Path) -> None:
    path = str(write_gguf(tmp_path, "llama"))
    devices: tuple[Literal["cpu", "builtin"], ...] = ("cpu", "builtin")
    for device in devices:
        assert load(EngineSpec(path=path, device=device)).placement == Placement("cpu", "the model is there")
        with pytest.raises(EngineError, match="--prefill gpu"):
            load(EngineSpec(path=path, device=device, prefill="gpu"))
