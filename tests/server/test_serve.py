"""Laws of the server's process: how it starts, what signals do to it, how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from quant.errors import PunaError
from server.web_server import bind
from tests.server.asking import CHAT, HELLO

CHECKOUT = Path(__file__).parents[2]


@contextmanager
def running(grace: float) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = [sys.executable, "-m", "tests.server.scripted_server", str(grace)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"http://\S+/v1", line) for line in process.stderr)))
        try:
            with httpx.Client(base_url=found[0].removesuffix("/v1"), timeout=20) as client:
                yield process, client
        finally:
            process.kill()
            process.stderr.read()


def events(response: httpx.Response) -> Iterator[str]:
    return (line.removeprefix("data: ") for line in response.iter_lines() if line)


def test_a_signal_in_mid_stream_ends_with_the_whole_answer_and_code_zero() -> None:
    with running(grace=30) as (process, client):
        with client.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as response:
            stream = events(response)
            said = [next(stream), next(stream)]
            process.send_signal(signal.SIGTERM)
            said += stream
        assert said[-1] == "[DONE]"
        chunks = [json.loads(chunk) for chunk in said[:-1]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "word " * 20
        assert process.wait(20) == 0


def test_a_grace_that_is_over_ends_streams_with_an_error() -> None:
    with running(grace=0) as (process, client):
        with client.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as response:
            stream = events(response)
            said = [next(stream), next(stream)]
            process.send_signal(signal.SIGTERM)
            said += stream
        assert said[-1] == "[DONE]"
        assert json.loads(said[-2])["error"]["code"] == "shutting_down"
        assert process.wait(20) == 0


def test_a_second_signal_ends_the_grace() -> None:
    with running(grace=3600) as (process, client):
        with client.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as response:
            stream = events(response)
            said = [next(stream), next(stream)]
            process.send_signal(signal.SIGTERM)
            while client.get("/health").json()["status"] != "draining":
                pass  # two signals that arrive together are one
            process.send_signal(signal.SIGTERM)
            said += stream
        assert said[-1] == "[DONE]"
        assert json.loads(said[-2])["error"]["code"] == "shutting_down"
        assert process.wait(20) == 0


def test_an_idle_server_leaves_at_once() -> None:
    with running(grace=3600) as (process, client):
        assert client.get("/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PunaError, match=rf"127\.0\.0\.1:{port}: Address already in use.*--port"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_not_blamed_on_the_port() -> None:
    with pytest.raises(PunaError) as refusal:
        bind("192.0.2.1", 0)
    assert "--port" not in str(refusal.value)


def test_a_bound_port_refuses_until_it_is_served() -> None:
    with bind("127.0.0.1", 0) as bound, socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(bound.getsockname())
