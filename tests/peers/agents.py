"""Agents at work: four clients with one long system prompt, turn after turn, on Puna and on llama-server.

Usage: python -m tests.peers.agents FILE --peer FOLDER [--prefix N] [--turns N] [--clients N] [--answer N] [--threads N]
FOLDER holds llama-server. Each client sends the system prompt with its tools, which all have in common, and its own
conversation; when the answer is whole it sends everything again with the answer and a new message of 50 to 100 tokens.
All clients run at once, and none waits for another. First Puna does that, then llama-server, on the same tokens.

Conversations are token ids sent to /v1/completions. Through a chat, the text of an answer would be cut into tokens
again, by each server in its own way, and random weights answer with noise whose tokens then differ from those that the
server made: what a server has cached would depend on luck. Here an answer is one word said again and again
(tests/peers/prompts.py), so a turn's prompt is exactly the last turn's prompt, its answer, and the new message. What is
left out for both is the writing of templates and the cutting of text into tokens. "new" counts the new message alone;
"prefilled" is the prompt less `usage.prompt_tokens_details.cached_tokens`, as each server reports it. The answer's last
token is always among the prefilled: it was sampled, and never read.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

from kvcache.pages import PAGE
from tests.peers.prompts import Word, Words, completion, repeated
from tests.peers.servers import Server, arguments, llama_server, puna
from tests.peers.streams import Stream, complete, ended

LEAST_MESSAGE, MOST_MESSAGE = 50, 100
GOAL = 0.25


@dataclass(frozen=True)
class Turn:
    """What a client says, and what it will hear."""

    message: list[int]
    word: Word


@dataclass(frozen=True)
class Scene:
    """The same for both servers."""

    system: list[int]
    conversations: list[list[Turn]]
    answer: int  # tokens

    @property
    def context(self) -> int:
        """Tokens of the longest conversation, in whole hundreds."""
        most = max(sum(len(turn.message) + self.answer for turn in turns) for turns in self.conversations)
        return -(-(len(self.system) + most + 1) // 100) * 100


@dataclass(frozen=True)
class Told:
    """One turn as it went."""

    prompt: int
    new: int
    cached: int
    seconds: float

    @property
    def prefilled(self) -> int:
        return self.prompt - self.cached

    @property
    def beyond(self) -> int:
        return self.prefilled - self.new


@dataclass
class Client:
    """One conversation. `history` is what both sides said so far."""

    server: Server
    turns: Iterator[Turn]
    history: list[int]
    answer: int
    told: list[Told] = field(default_factory=list)

    def ask(self) -> Stream | None:
        """The next turn under way, if there is one."""
        turn = next(self.turns, None)
        if turn is None:
            return None
        self._turn = turn
        self.history += turn.message
        return Stream(self.server, completion(self.history, self.answer, **repeated(turn.word)))

    def hear(self, stream: Stream) -> None:
        stream.close()
        if stream.text != self._turn.word.text * self.answer:
            raise SystemExit(f"{self.server.name} did not say {self._turn.word.text!r} each time: {stream.text!r}")
        assert stream.usage["prompt_tokens"] == len(self.history), "the server counts as we do"
        seconds = perf_counter() - stream.asked
        self.told.append(Told(len(self.history), len(self._turn.message), stream.cached, seconds))
        self.history += [self._turn.word.token] * self.answer


@dataclass(frozen=True)
class Run:
    """`turns[t]` has that turn of every client; `first` is when the last client had its first answer."""

    turns: list[tuple[Told, ...]]
    first: float
    total: float


def run(server: Server, scene: Scene, warm_up: Sequence[int]) -> Run:
    complete(server, completion(warm_up, 4))
    clients = [Client(server, iter(turns), list(scene.system), scene.answer) for turns in scene.conversations]
    began, first = perf_counter(), 0.0
    asked = {stream: client for client in clients if (stream := client.ask())}
    while asked:
        for stream in ended(list(asked)):
            client = asked.pop(stream)
            client.hear(stream)
            first = perf_counter() - began if len(client.told) == 1 else first
            following = client.ask()
            asked |= {following: client} if following else {}
    total = perf_counter() - began
    return Run(list(zip(*(client.told for client in clients), strict=True)), first, total)


def scene_of(words: Words, asked: argparse.Namespace) -> Scene:
    def conversation() -> list[Turn]:
        sizes = [words.between(LEAST_MESSAGE, MOST_MESSAGE) for _ in range(asked.turns)]
        return [Turn(words.draw(size), words.one()) for size in sizes]

    return Scene(words.draw(asked.prefix), [conversation() for _ in range(asked.clients)], asked.answer)


def table(ours: Run, theirs: Run | None) -> Iterator[str]:
    """Of each turn the worst client's figures, and the median of their seconds."""
    runs = [ours, theirs] if theirs else [ours]
    yield "| turn | prompt | new |" + " cached | prefilled | beyond new | seconds |" * len(runs)
    yield "| --- | --- | --- |" + " --- | --- | --- | --- |" * len(runs)
    for number, turn in enumerate(ours.turns, 1):
        said = f"| {number} | {max(told.prompt for told in turn)} | {max(told.new for told in turn)} |"
        yield said + "".join(_cells(run.turns[number - 1]) for run in runs)


def _cells(turn: tuple[Told, ...]) -> str:
    least, most = min(told.cached for told in turn), max(told.prefilled for told in turn)
    return f" {least} | {most} | {max(told.beyond for told in turn)} | {median(told.seconds for told in turn):.2f} |"


def summary(name: str, run: Run) -> str:
    """Whether the law of the issue holds, and the time."""
    later = [told for turn in run.turns[1:] for told in turn]
    computed = sum(told.prefilled for turn in run.turns for told in turn)
    worst = max((told.beyond for told in later), default=0)
    holds = "holds" if worst <= PAGE else "does NOT hold"
    return (
        f"{name}: {run.total:.1f} s, of which the first turns {run.first:.1f} s; {computed} tokens prefilled; "
        f'after the first turn at most {worst} beyond the new ones ("at most one page of {PAGE}" {holds}).'
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--peer", type=Path, metavar="FOLDER")
    parser.add_argument("--prefix", type=int, default=6000)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--answer", type=int, default=16)
    asked = parser.parse_args()
    words = Words(asked.file)
    scene, warm_up = scene_of(words, asked), words.draw(8)
    with puna(asked.file, asked.threads, scene.context) as server:
        ours = run(server, scene, warm_up)
    print(summary("Puna", ours), flush=True)
    theirs = None
    if asked.peer:
        with llama_server(asked.peer, asked.file, asked.threads, scene.context, asked.clients) as server:
            theirs = run(server, scene, warm_up)
    print(f"\n{asked.clients} clients, a system prompt of {asked.prefix} tokens, answers of {asked.answer}.")
    print(f"Puna{', then llama-server' if theirs else ''}:\n")
    print("\n".join(table(ours, theirs)) + "\n")
    if theirs:
        print(summary("llama-server", theirs))
        print(f"Total time: {ours.total / theirs.total:.2f} of llama-server's (goal: at most {GOAL}).")


if __name__ == "__main__":
    main()
