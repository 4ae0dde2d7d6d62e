"""Laws of the engine client: an answer comes whole or with an error, and no child is left behind."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from engine import process
from engine.breaker import Breaker
from engine.client import Answer, EngineClient, Runner
from engine.messages import Asker, Delta, EngineSpec, Report, Sampling, Submit
from engine.process import EngineProcess
from kvcache.pages import PAGE
from quant.errors import EngineError, ModelFormatError, NotEnoughMemory, PunaError, UnsupportedModel
from tests.engine.fake_child import PAGES, PROGRAM
from tests.engine.hash_model import alone
from tests.engine.test_engine import mixed, prompt_of

GOOD = EngineSpec(path="good")
LONG = Sampling(max_tokens=PAGES * PAGE)
SHORT = Sampling(max_tokens=5, seed=3)

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(bounded())


@asynccontextmanager
async def client_of(spec: EngineSpec = GOOD, breaker: Breaker | None = None) -> AsyncIterator[EngineClient]:
    client = await EngineClient.start(spec, PROGRAM, breaker)
    try:
        yield client
    finally:
        await client.close()


async def whole(answer: Answer) -> list[Delta]:
    """Its news without what differs each time: ids and seconds."""
    return [msgspec.structs.replace(delta, id=0, cost=None) async for delta in answer]


def kill(client: EngineClient, number: signal.Signals) -> None:
    assert client.pid is not None
    os.kill(client.pid, number)


def test_answers_come_as_from_an_engine_in_this_process() -> None:
    async def work() -> None:
        async with client_of() as client:
            runner: Runner = client
            requests = [runner.submit(mixed(i).prompt, mixed(i).sampling) for i in range(16)]
            answers = await asyncio.gather(*(whole(request) for request in requests))
            assert answers == [alone(mixed(i).prompt, mixed(i).sampling) for i in range(16)]
            assert client.open == 0
            assert (client.alive, client.ready.pages, client.ready.context) == (True, PAGES, PAGES * PAGE)

    run(work())


@pytest.mark.parametrize(
    ("path", "kind", "text"),
    [
        ("unsupported", UnsupportedModel, "a: b.gguf: an architecture of tomorrow"),
        ("malformed", ModelFormatError, "a.gguf: ends too early"),
        ("too big", NotEnoughMemory, "needs 9 GB, 1 GB is there"),
        ("defect", EngineError, "ZeroDivisionError: ours"),
        ("dies while loading", EngineError, "the engine died (signal 9)"),
    ],
)
def test_what_the_child_could_not_load_is_raised_here(path: str, kind: type[PunaError], text: str) -> None:
    with pytest.raises(kind) as raised:
        run(EngineClient.start(EngineSpec(path=path), PROGRAM))
    assert type(raised.value) is kind
    assert str(raised.value) == text


def test_a_child_killed_in_mid_stream_fails_every_open_request_and_the_next_is_served() -> None:
    async def work() -> None:
        async with client_of(breaker=Breaker(deaths=100)) as client:
            expected = alone(prompt_of(40, 1), SHORT)
            for _ in range(3):
                streams = [client.submit(prompt_of(30, i), LONG) for i in range(4)]
                await anext(streams[0])
                kill(client, signal.SIGKILL)
                for stream in streams:
                    with pytest.raises(EngineError, match=r"the engine died \(signal 9\)"):
                        await whole(stream)
                    assert await whole(stream) == [], "the error is raised once"
                assert await whole(client.submit(prompt_of(40, 1), SHORT)) == expected

    run(work())


def test_a_step_that_fails_tells_what_failed() -> None:
    async def work() -> None:
        async with client_of(EngineSpec(path="fails in a step")) as client:
            with pytest.raises(EngineError, match="RuntimeError: a kernel that fails"):
                await whole(client.submit([1], SHORT))

    run(work())


def test_a_child_that_dies_again_and_again_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(EngineSpec(path=str(tmp_path / "loaded")), Breaker(deaths=2, window=3600)) as client:
            stream = client.submit(prompt_of(30, 1), LONG)
            await anext(stream)
            kill(client, signal.SIGKILL)
            with pytest.raises(EngineError, match="signal 9"):
                await whole(stream)
            with pytest.raises(EngineError, match="signal 9"):  # taken during the reload, which fails
                await whole(client.submit([1], SHORT))
            with pytest.raises(EngineError, match="again and again"):
                await whole(client.submit([1], SHORT))
            with pytest.raises(EngineError, match="again and again"):
                client.submit([1], SHORT)
            assert not client.alive

    run(work())


def test_a_child_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files may run out for a moment; whoever waits is told, and nobody waits for ever."""
    pair = socket.socketpair

    def refused_once() -> tuple[socket.socket, socket.socket]:
        monkeypatch.setattr(socket, "socketpair", pair)
        raise OSError(errno.EMFILE, "Too many open files")

    async def work() -> None:
        async with client_of(breaker=Breaker(deaths=100)) as client:
            stream = client.submit(prompt_of(30, 1), LONG)
            await anext(stream)
            monkeypatch.setattr(socket, "socketpair", refused_once)
            kill(client, signal.SIGKILL)
            with pytest.raises(EngineError, match="signal 9"):
                await whole(stream)
            with pytest.raises(EngineError, match=r"could not be started: .*Too many open files"):
                await whole(client.submit([1], SHORT))
            assert await whole(client.submit([1], SHORT)) == alone([1], SHORT)

    run(work())


def test_the_breaker_waits_until_the_deaths_are_old() -> None:
    breaker = Breaker(deaths=3, window=60)
    assert [breaker.died(now) for now in (0, 10, 20)] == [0, 0, 40]
    assert breaker.died(60.0) == 10
    assert breaker.died(200.0) == 0


def test_a_respawned_child_keeps_the_context_that_the_first_one_chose() -> None:
    async def work() -> None:
        async with client_of() as client:
            kill(client, signal.SIGKILL)
            await whole_after_death(client)
            assert client._spec.context == client.ready.context

    async def whole_after_death(client: EngineClient) -> None:
        with pytest.raises(EngineError):
            await whole(client.submit(prompt_of(30, 1), LONG))
        await whole(client.submit([1], SHORT))

    run(work())


@pytest.mark.parametrize("prompt", [10, 5000], ids=["in decode", "in prefill"])
def test_a_cancelled_request_ends_here_at_once_and_gives_its_pages_back(prompt: int) -> None:
    async def work() -> None:
        async with client_of() as client:
            others = client.submit(prompt_of(20, 1), LONG)
            await anext(others)
            request = client.submit(prompt_of(prompt, 2), LONG)
            await anext(others)
            request.cancel()
            request.cancel()
            assert (await whole(request))[-1] == Delta(0, (), "cancelled")
            others.cancel()
            assert client.open == 0
            everything = prompt_of(PAGES * PAGE - 1, 3)  # needs each page of the pool
            assert await whole(client.submit(everything, SHORT)) == alone(everything, SHORT, PAGES)

    run(work())


def test_a_request_cancelled_while_it_waits_is_never_run() -> None:
    async def work() -> None:
        async with client_of(msgspec.structs.replace(GOOD, max_batch=1)) as client:
            first = client.submit(prompt_of(20, 1), LONG)
            await anext(first)
            second = client.submit([1, 2], SHORT)
            second.cancel()
            assert await whole(second) == [Delta(0, (), "cancelled")]
            first.cancel()
            assert await whole(client.submit([1, 2], SHORT)) == alone([1, 2], SHORT)

    run(work())


def test_a_request_that_can_never_run_fails_alone() -> None:
    async def work() -> None:
        async with client_of() as client:
            with pytest.raises(EngineError, match="this one has 20000"):
                await whole(client.submit([1] * 20000, SHORT))
            assert await whole(client.submit([1, 2], SHORT)) == alone([1, 2], SHORT)

    run(work())


def test_closing_fails_open_requests_and_leaves_no_child() -> None:
    async def work() -> None:
        client = await EngineClient.start(GOOD, PROGRAM)
        child = client.pid
        assert child is not None
        request = client.submit(prompt_of(20, 1), LONG)
        await anext(request)
        await client.close()
        with pytest.raises(EngineError, match="closed"):
            await whole(request)
        with pytest.raises(EngineError, match="closed"):
            client.submit([1], SHORT)
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)

    run(work())


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(PROGRAM, id="loading for ever: leaves when hung up on"),
        pytest.param("import threading; threading.Event().wait()", id="deaf: is killed"),
    ],
)
def test_no_child_stays_whatever_it_is_at(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.1)

    async def work() -> None:
        child = await EngineProcess.spawn(EngineSpec(path="never done"), program)
        await child.end()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

    run(work())


def test_a_start_that_is_given_up_leaves_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    spawned: asyncio.Queue[EngineProcess] = asyncio.Queue()
    spawn = EngineProcess.spawn

    async def noted(spec: EngineSpec, program: str) -> EngineProcess:
        child = await spawn(spec, program)
        spawned.put_nowait(child)
        return child

    monkeypatch.setattr(EngineProcess, "spawn", noted)

    async def work() -> None:
        start = asyncio.create_task(EngineClient.start(EngineSpec(path="never done"), PROGRAM))
        child = await spawned.get()
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

    run(work())


@pytest.mark.parametrize("turns", range(12))
def test_a_spawn_cancelled_at_any_turn_of_the_loop_leaves_nothing(turns: int) -> None:
    """Sockets and processes that are left over would fail the test run by their ResourceWarning."""

    async def work() -> None:
        task = asyncio.create_task(EngineProcess.spawn(EngineSpec(path="good"), "pass"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).end()
        gc.collect()

    run(work())


def test_signals_to_the_whole_group_do_not_cut_an_answer_short() -> None:
    """Ctrl-C and a service manager's SIGTERM reach the child too, while the server drains."""

    async def work() -> None:
        async with client_of() as client:
            sampling = Sampling(max_tokens=200)
            request = client.submit(prompt_of(20, 1), sampling)
            await anext(request)
            kill(client, signal.SIGTERM)
            kill(client, signal.SIGINT)
            assert len(await whole(request)) == 199

    run(work())


def test_reports_come_in_the_order_of_the_questions_beside_answers() -> None:
    async def work() -> None:
        async with client_of() as client:
            request = client.submit(prompt_of(20, 1), LONG)
            await anext(request)
            reports = await asyncio.gather(*(client.report() for _ in range(8)))
            assert {report.cache.pages for report in reports} == {PAGES}
            request.cancel()
            idle = await client.report()
            assert (idle.requests, idle.cache.held) == ((), 0)

    run(work())


def test_whoever_asks_a_child_that_dies_is_told_and_the_next_is_answered() -> None:
    async def work() -> None:
        async with client_of(breaker=Breaker(deaths=100)) as client:
            kill(client, signal.SIGSTOP)  # it answers nothing any more
            asked = [asyncio.create_task(client.report()) for _ in range(3)]
            left = asyncio.create_task(client.report())
            await asyncio.sleep(0)
            left.cancel()
            kill(client, signal.SIGKILL)
            for question in asked:
                with pytest.raises(EngineError, match="signal 9"):
                    await question
            with pytest.raises(EngineError, match="being loaded"):
                await client.report()
            assert await whole(client.submit([1], SHORT)) == alone([1], SHORT)
            assert (await client.report()).cache.pages == PAGES

    run(work())


def test_a_question_that_was_given_up_does_not_take_the_next_ones_answer() -> None:
    async def work() -> None:
        async with client_of() as client:
            left = asyncio.create_task(client.report())
            await asyncio.sleep(0)
            left.cancel()
            assert isinstance(await client.report(), Report)
            assert not client._asked

    run(work())


def test_a_request_waits_for_a_reload_no_longer_than_it_would_for_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    flag = str(tmp_path / "loaded")
    deaf = f"import os, threading\nif os.path.exists({flag!r}): threading.Event().wait()\nopen({flag!r}, 'w').close()"

    async def work() -> None:
        client = await EngineClient.start(GOOD, f"{deaf}\n{PROGRAM}", Breaker(deaths=100))
        try:
            kill(client, signal.SIGKILL)
            with pytest.raises(EngineError):
                await whole(client.submit(prompt_of(30, 1), LONG))
            patient = client.submit([1], SHORT)
            assert await whole(client.submit([1], SHORT, Asker(patience=0.01))) == [Delta(0, (), "expired")]
            assert client.open == 1
            patient.cancel()
        finally:
            await client.close()

    run(work())


def test_what_a_reload_took_of_a_requests_patience_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with client_of() as client:
            request = client.submit([1], SHORT, Asker(patience=10))
            request.came -= 4
            left = request.submit_now.asker.patience
            assert left is not None
            assert 5 < left <= 6
            request.came -= 100
            assert request.submit_now == Submit(1, [1], SHORT, Asker(patience=0))
            assert client.submit([1], SHORT).submit_now == Submit(2, [1], SHORT)

    run(work())


def test_who_asks_travels_with_the_request() -> None:
    async def work() -> None:
        async with client_of() as client:
            asker = Asker("a", "flex", "salt", 1.5)
            request = client.submit([1], SHORT, asker)
            assert request.submit == Submit(1, [1], SHORT, asker)

    run(work())
