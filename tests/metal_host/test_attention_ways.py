"""Who may attend: each way is right within its bound on the trials that a supervisor would make, ours bit for bit."""

from dataclasses import replace

import numpy as np
import pytest

from engine.metal.attention import PAGES, Layout, Shape
from engine.metal.attention_reference import Class
from engine.metal.attention_trials import Attended, Written, brought, spot, timed, trials
from engine.metal.attention_ways import ways
from tests.metal_host.layer_cases import on_host


def shape_of(pages: str, out: str = "float16", window: int | None = None) -> Shape:
    return Shape(4, 2, 64, window, out, out, PAGES[pages], Layout.by_token(2, PAGES[pages].row(64)))


def require_right(trial: Attended) -> None:
    shape = trial.written.shape
    for way in ways(shape, trial.kind, on_host):
        way.compile(trial)
        got = way.result(trial)
        np.testing.assert_array_less(np.abs(got - trial.exact), way.bound(trial))
        if way.promises(trial):
            for row in (0, len(got) // 2, len(got) - 1):
                np.testing.assert_array_equal(way.result(trial.alone(row))[0], got[row])


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("pages", ["float16", "q8", "q4"])
def test_every_way_is_right_on_a_spot_check(pages: str, kind: Class) -> None:
    for trial in spot(shape_of(pages), kind):
        require_right(trial)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_every_way_is_right_at_all_edges(kind: Class) -> None:
    for trial in trials(shape_of("bfloat16", "bfloat16", window=70), kind):
        require_right(trial)


def test_a_way_can_be_timed() -> None:
    trial = brought("small", "decode", Written(shape_of("float16"), ((40, 1),)))
    for way in ways(trial.written.shape, "decode", on_host):
        way.burst(trial, 3)


def test_what_is_timed_are_answers_and_prompts_of_some_length() -> None:
    shape = replace(shape_of("q8"), heads=2)
    assert [len(trial.positions) for trial in timed(shape, "decode")] == [1, 8]
    assert [len(trial.positions) for trial in timed(shape, "prefill")] == [512, 512]


def test_another_source_or_shape_is_another_candidate() -> None:
    shapes = [shape_of("float16"), shape_of("q8"), shape_of("float16", window=5)]
    kinds: tuple[Class, ...] = ("decode", "prefill")
    sources = [way.source for shape in shapes for kind in kinds for way in ways(shape, kind)]
    assert len(set(sources)) == len(sources)


def test_what_is_not_supported_is_left_to_mlx() -> None:
    odd = replace(shape_of("float16"), head_dim=72)
    assert [way.name for way in ways(odd, "decode", on_host)] == ["mlx"]
