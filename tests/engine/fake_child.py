"""An engine child without a model file: the path of the spec says what becomes of it."""

import os
import signal
import threading
from pathlib import Path
from typing import NoReturn

import mlx.core as mx

from engine.child import Loaded, main
from engine.messages import EngineSpec
from engine.placement import Placement
from models.ops import Ops
from quant.errors import ModelFormatError, NotEnoughMemory, UnsupportedModel
from tests.engine.hash_model import HashModel, engine_of

PROGRAM = "from tests.engine.fake_child import start; start()"
PAGES = 400


def start() -> None:
    main(load)


def load(spec: EngineSpec) -> Loaded:
    match spec.path:
        case "good":
            return good(spec)
        case "unsupported":
            raise UnsupportedModel("a: b.gguf", "an architecture of tomorrow")
        case "malformed":
            raise ModelFormatError("a.gguf", "ends too early")
        case "too big":
            raise NotEnoughMemory("needs 9 GB, 1 GB is there")
        case "defect":
            raise ZeroDivisionError("ours")
        case "dies while loading":
            die()
        case "never done":
            threading.Event().wait()
        case "fails in a step":
            HashModel.forward = fail  # type: ignore[method-assign,assignment]
            return good(spec)
    return good_once(spec)


def good(spec: EngineSpec) -> Loaded:
    return Loaded(engine_of(PAGES, spec.max_batch, spec.context)[0], "hash", Placement("cpu", "the model is there"))


def good_once(spec: EngineSpec) -> Loaded:
    """Loads the first time; dies each time after it. The path is where the first time is noted."""
    if Path(spec.path).exists():
        die()
    Path(spec.path).touch()
    return good(spec)


def fail(model: HashModel, ops: Ops) -> mx.array:
    raise RuntimeError("a kernel that fails")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")
