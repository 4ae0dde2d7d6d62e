"""What a streamed token costs the server's process: detokenising, JSON, HTTP, and the talk with the engine.

Usage: python -m tests.server.cost [--streams N ...] [--rate R] [--tokens T]
A process that computes nothing stands for the engine and says R tokens a second for each of N streams; the seconds
of CPU are those of the server's process alone, between its first token and its last.
"""

import argparse
import asyncio
import multiprocessing
import resource
import socket
import sys
import time
from multiprocessing.connection import Connection

from engine.client import EngineClient
from engine.frames import SPEC, TO_ENGINE, frame
from engine.messages import Cost, Delta, EngineSpec, Ready, Sampled, Step, Stop, Submit
from server.drain import Door
from server.served import Served, Store
from tests.server.asking import serving
from tests.server.fakes import FakeCard

PROGRAM = "from tests.server.cost import engine; engine()"
WORDS = b"the llama on the puna eats grass and looks at the sky "
BODY = b'{"messages": [{"role": "user", "content": "hello"}], "stream": true, "max_tokens": %d}'


def engine() -> None:
    """Says a token of every sequence in each step, so many steps a second: the spec's path is the pace."""
    link = socket.socket(fileno=int(sys.argv[1]))
    pause = 1 / float(SPEC.read(link).path)
    link.sendall(frame(Ready(2**20, 2**15, 32, "cpu", 0.0)))
    said: dict[int, list[int]] = {}
    due = time.monotonic()
    while True:
        link.settimeout(max(due - time.monotonic(), 1e-6) if said else None)
        try:
            message = TO_ENGINE.read(link)
            if isinstance(message, Stop):
                return
            if isinstance(message, Submit):
                said[message.id] = [0, message.sampling.max_tokens]
                due = max(due, time.monotonic())
            continue
        except TimeoutError:
            pass
        except EOFError:
            return
        due += pause
        link.settimeout(None)
        link.sendall(frame(Step(tuple(_next(name, count) for name, count in said.items()))))
        said = {name: count for name, count in said.items() if count[0] < count[1]}


def _next(name: int, count: list[int]) -> Delta:
    token = Sampled(WORDS[count[0] % len(WORDS)])
    count[0] += 1
    if count[0] == count[1]:
        return Delta(name, (token,), "length", cost=Cost(0, 0.0, 0.0, 0.0))
    return Delta(name, (token,))


def server(link: Connection, rate: float) -> None:
    """Tells its address, then its seconds of CPU whenever it is asked."""

    async def work() -> None:
        client = await EngineClient.start(EngineSpec(path=str(rate)), PROGRAM)
        async with serving(Store([Served("fake", FakeCard(), client)]), Door(64)) as url:
            link.send(url)
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            def asked() -> None:
                if link.recv() is None:
                    done.set()
                usage = resource.getrusage(resource.RUSAGE_SELF)
                link.send((usage.ru_utime, usage.ru_stime))

            loop.add_reader(link.fileno(), asked)
            await done.wait()
            loop.remove_reader(link.fileno())
        await client.close()

    asyncio.run(work())


async def read(port: int, tokens: int, started: asyncio.Event) -> int:
    """Reads a stream to its end, with next to no work; the events it had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = BODY % tokens
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await reader.readuntil(b"data:")
    started.set()
    data = await reader.read()
    writer.close()
    return data.count(b'"content":"')


async def measure(port: int, link: Connection, streams: int, tokens: int) -> None:
    started = [asyncio.Event() for _ in range(streams)]
    readers = [asyncio.create_task(read(port, tokens, one)) for one in started]
    await asyncio.gather(*(one.wait() for one in started))
    link.send(0)
    (user, kernel), wall = link.recv(), time.monotonic()
    events = sum(await asyncio.gather(*readers))
    link.send(0)
    (user_then, kernel_then), wall = link.recv(), time.monotonic() - wall
    user, kernel, said = user_then - user, kernel_then - kernel, streams * tokens
    print(
        f"{streams} streams at {tokens / wall:.1f} tokens/s: {(user + kernel) / said * 1e6:.0f} us a token, of which "
        f"{kernel / said * 1e6:.0f} in the kernel; {(user + kernel) / wall:.1%} of a core, "
        f"{events / said:.2f} events a token"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--rate", type=float, default=27.0)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=server, args=(theirs, options.rate))
    process.start()
    port = int(ours.recv().rpartition(":")[2])
    for streams in options.streams:
        asyncio.run(measure(port, ours, streams, options.tokens))
    ours.send(None)
    process.join()


if __name__ == "__main__":
    main()
