"""What a long prompt does to streams that are running, and they to it, on Puna and on llama-server.

Usage: python -m tests.peers.stall FILE --peer FOLDER [--long N] [--peer-long N] [--streams N] [--answer N] [--calm N]
FOLDER holds llama-server. Four clients have one streamed answer after the other; their first ones are of different
lengths, so that they do not end together. Each asks the same again, so that its prompt is in the server's cache and no
other prefills beside the long one. After some time to themselves that one arrives, and the time of each token is taken
at the client. As many other tokens were prefilled alone before, which gives the prompt's own time to first token; and
again at the end, for a machine's speed changes within minutes: their mean counts. llama-server gets a shorter prompt
(it stalls for as long as that takes), and a slot more than there are streams, so that the prompt need not wait for one.

A gap is the time between two tokens of an answer; undisturbed ones are those before the long prompt came. Answers end
and others begin, so that contexts are as long then as they are later, however long the prompt takes. "While it
prefills" are those gaps that end or begin between the prompt's arrival and its first token. "Decode work" is what the
streams' tokens of that time would have taken without the prompt: rounds of all streams, at the undisturbed median gap
each, the mean of those before and after the prompt.
"""

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from tests.peers.prompts import Words, completion, repeated
from tests.peers.servers import Server, arguments, llama_server, puna
from tests.peers.streams import Stream, complete, follow

BEFORE = 64  # prompt tokens of a stream
GOAL = 5.0


@dataclass(frozen=True)
class Seen:
    """One server's figures; times in seconds."""

    name: str
    long: int  # tokens of the long prompt
    calm: list[float]  # gaps before the long prompt came
    again: list[float]  # and after its first token
    disturbed: list[float]  # gaps while it prefilled
    alone: list[float]  # times to first token
    beside: float
    rounds: float  # tokens that each stream got meanwhile

    @property
    def pace(self) -> float:
        return median(self.calm)

    @property
    def decode_work(self) -> float:
        return self.rounds * mean([self.pace, median(self.again)])

    @property
    def growth(self) -> float:
        """Of the time to first token, beyond decode work."""
        return self.beside - mean(self.alone) - self.decode_work


class Talker:
    """A client that has one answer after the other, to the same prompt."""

    def __init__(self, begun: Callable[[Mapping[str, Any]], Stream], words: Words, first: int, later: int) -> None:
        prompt, how = words.draw(BEFORE), repeated(words.one())
        self._begun = begun
        self._later = completion(prompt, later, **how)
        self.answers = [begun(completion(prompt, first, **how))]

    @property
    def answer(self) -> Stream:
        return self.answers[-1]

    @property
    def tokens(self) -> int:
        """So many came at least: now and then two come as one piece."""
        return sum(len(answer.arrivals) for answer in self.answers)

    def go_on(self) -> None:
        if self.answer.over:
            self.answers.append(self._begun(self._later))


def measure(server: Server, words: Words, long: int, asked: argparse.Namespace) -> Seen:
    complete(server, completion(words.draw(8), 4))
    alone = [complete(server, long_prompt(words, long)).first]
    with ExitStack() as open_streams:

        def begun(body: Mapping[str, Any]) -> Stream:
            return open_streams.enter_context(Stream(server, body))

        lengths = [asked.answer * (place + 1) // asked.streams for place in range(asked.streams)]
        talkers = [Talker(begun, words, length, asked.answer) for length in lengths]
        talk(talkers, [], lambda: all(talker.tokens > asked.calm for talker in talkers))
        guest = begun(long_prompt(words, long))
        talk(talkers, [guest], lambda: bool(guest.arrivals))
        seen = [talker.tokens for talker in talkers]
        talk(talkers, [], lambda: all(t.tokens > n + asked.calm for t, n in zip(talkers, seen, strict=True)))
    alone.append(complete(server, long_prompt(words, long)).first)
    return seen_of(server.name, long, talkers, guest, alone)


def talk(talkers: Sequence[Talker], guests: Sequence[Stream], enough: Callable[[], bool]) -> None:
    """Until there is enough."""
    while not enough():
        streams = [*guests, *(talker.answer for talker in talkers)]
        follow(streams, lambda: enough() or any(talker.answer.over for talker in talkers))
        for talker in talkers:
            talker.go_on()


def long_prompt(words: Words, tokens: int) -> dict[str, object]:
    """Never the same twice, so that no cache has any of it."""
    return completion(words.draw(tokens), 1, **repeated(words.one()))


def seen_of(name: str, long: int, talkers: Sequence[Talker], guest: Stream, alone: list[float]) -> Seen:
    came, first = guest.asked, guest.arrivals[0]
    settled = max(talker.answers[0].arrivals[0] for talker in talkers)
    streams = [answer for talker in talkers for answer in talker.answers if answer.arrivals]
    pairs = [pair for stream in streams for pair in pairwise(stream.arrivals)]
    meanwhile = sum(told(stream, came, first) for stream in streams)
    return Seen(
        name,
        long,
        [after - before for before, after in pairs if settled <= before and after <= came],
        [after - before for before, after in pairs if before >= first],
        [after - before for before, after in pairs if after > came and before < first],
        alone,
        guest.first,
        meanwhile / len(talkers),
    )


def told(stream: Stream, begin: float, end: float) -> float:
    """Tokens of that time. All of a stream's are the same word, so their text tells how many they are."""
    pieces = zip(stream.arrivals, stream.lengths, strict=True)
    return sum(length for time, length in pieces if begin < time <= end) / min(stream.lengths)


def table(every: Sequence[Seen]) -> Iterator[str]:
    def row(what: str, *cells: str) -> str:
        return f"| {what} | " + " | ".join(cells) + " |"

    yield row("", *(seen.name for seen in every))
    yield row("---", *("---" for _ in every))
    yield row("tokens of the long prompt", *(str(seen.long) for seen in every))
    yield row("undisturbed gap: median, largest", *(f"{_ms(s.pace)}, {_ms(max(s.calm))}" for s in every))
    yield row("the same after the prompt", *(f"{_ms(median(s.again))}, {_ms(max(s.again))}" for s in every))
    middles = (f"{_ms(median(s.disturbed))}, {_ms(quantile(s.disturbed, 0.95))}" for s in every)
    yield row("gap while it prefills: median, 95 %", *middles)
    yield row("largest gap while it prefills", *(_ms(max(seen.disturbed)) for seen in every))
    ratios = (f"{max(seen.disturbed) / seen.pace:.1f}" for seen in every)
    yield row(f"largest over the undisturbed median (goal {GOAL:.0f})", *ratios)
    yield row("its first token alone: before, after", *(", ".join(f"{t:.2f} s" for t in s.alone) for s in every))
    yield row("its first token beside the streams", *(f"{s.beside:.2f} s" for s in every))
    work = (f"{seen.rounds:.0f}, {seen.decode_work:.2f} s" for seen in every)
    yield row("tokens of each stream meanwhile, and their decode work", *work)
    yield row("growth beyond that (goal: none)", *(f"{s.growth:+.2f} s" for s in every))


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--peer", type=Path, metavar="FOLDER")
    parser.add_argument("--long", type=int, default=16000)
    parser.add_argument("--peer-long", type=int, default=4000)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--answer", type=int, default=512, metavar="N", help="tokens of an answer")
    parser.add_argument("--calm", type=int, default=512, metavar="N", help="tokens of each client before and after")
    asked = parser.parse_args()
    words = Words(asked.file)
    gc.disable()  # it would be a gap of ours
    print(f"{asked.streams} streams; {asked.calm} tokens of each before the long prompt.")
    usual = BEFORE + asked.answer
    with puna(asked.file, asked.threads, max(asked.long, usual) + 1) as server:
        every = [measure(server, words, asked.long, asked)]
    print("\n" + "\n".join(table(every)) + "\n", flush=True)
    if asked.peer:
        slots, context = asked.streams + 1, max(asked.peer_long, usual) + 1
        with llama_server(asked.peer, asked.file, asked.threads, context, slots) as server:
            every.append(measure(server, words, asked.peer_long, asked))
        print("\n" + "\n".join(table(every)))


if __name__ == "__main__":
    main()
