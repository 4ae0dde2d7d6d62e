"""Laws of the child: it sleeps when idle, leaves when its server is gone, and its frames are whole."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from engine.child import Inbox, run
from engine.frames import FROM_ENGINE, SPEC, TO_ENGINE, frame
from engine.messages import Cancel, Delta, EngineSpec, FromEngine, Ready, Sampling, Step, Stop, Submit, ToEngine
from tests.engine.fake_child import PROGRAM
from tests.engine.hash_model import alone, collect, engine_of


class Script(Inbox):
    """An inbox that was written beforehand: what arrives while idle, one after the other."""

    def __init__(self, messages: list[ToEngine]) -> None:
        self.messages = messages
        self.waits = 0

    def wait(self) -> ToEngine:
        self.waits += 1
        return self.messages.pop(0)

    def rest(self) -> list[ToEngine]:
        return []


def test_it_waits_when_idle_and_steps_when_not() -> None:
    """Three messages while idle are three waits and no pass; a request of 5 tokens is 5 passes and no wait."""
    engine, model = engine_of(pages=8)
    submit = Submit(0, [1, 2, 3], Sampling(max_tokens=5))
    inbox = Script([Cancel(7), Cancel(8), submit, Stop()])
    sent: list[FromEngine] = []
    run(engine, inbox, sent.append)
    assert inbox.waits == 4
    assert len(model.passes) == 5
    answers: dict[int, list[Delta]] = {}
    for step in sent:
        assert isinstance(step, Step)
        collect(step.deltas, answers)
    assert answers == {0: alone([1, 2, 3], submit.sampling)}


@contextmanager
def child(spec: EngineSpec) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair()
    with theirs:
        started = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    ours.sendall(frame(spec))
    try:
        yield started, ours
    finally:
        ours.close()
        started.kill()
        started.wait()


def test_it_leaves_when_the_server_is_gone() -> None:
    with child(EngineSpec(path="good")) as (process, link):
        assert isinstance(FROM_ENGINE.read(link), Ready)
        link.sendall(frame(Submit(1, [1], Sampling(max_tokens=10**6))))
        assert isinstance(FROM_ENGINE.read(link), Step)
        link.close()
        process.wait(timeout=10)


def test_it_leaves_when_the_server_is_gone_while_it_loads() -> None:
    with child(EngineSpec(path="never done")) as (process, link):
        link.close()
        assert process.wait(timeout=10) == 0


def test_it_leaves_when_told() -> None:
    with child(EngineSpec(path="good")) as (process, link):
        link.sendall(frame(Stop()))
        assert process.wait(timeout=10) == 0


def test_a_message_arrives_as_it_was_sent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sampling = Sampling(max_tokens=3, logit_bias={5: -1.5}, stop_tokens=(1, 2), seed=2**64 - 1, logprobs=2)
        spec = EngineSpec(path="a/b", context=7, device="builtin")
        messages: list[ToEngine] = [Submit(1, list(range(50)), sampling), Cancel(1), Stop()]
        ours.sendall(frame(spec) + b"".join(frame(message) for message in messages))
        assert SPEC.read(theirs) == spec
        assert [TO_ENGINE.read(theirs) for _ in messages] == messages


def test_the_server_side_does_not_import_mlx() -> None:
    """Its memory would be the server's, for nothing."""
    program = "import engine.client, sys, json; print(json.dumps(sorted(sys.modules)))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    loaded = json.loads(subprocess.check_output([sys.executable, "-P", "-c", program], env=env))
    assert not [name for name in loaded if name.split(".")[0] in ("mlx", "numpy")]
