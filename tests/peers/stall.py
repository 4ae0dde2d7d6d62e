"""What a long prompt does to streams that are running, and they to it, on Puna and on llama-server.

Usage: python -m tests.peers.stall FILE --peer FOLDER [--long N] [--peer-long N] [--streams N] [--answer N] [--calm N]
       [--visits N]
FOLDER holds llama-server. Four clients have one streamed answer after the other; their first ones are of different
lengths, so that they do not end together. Each asks the same again, so that its prompt is in the server's cache and no
other prefills beside the long one. After some time to themselves that one arrives, and the time of each token is taken
at the client. As many other tokens are prefilled alone before and after, which gives the prompt's own time to first
token: their mean counts, for a machine's speed changes within minutes. What Puna's prompt grows by is the small
difference of long times, so several visits, in turns with prompts alone, say more than one. llama-server gets a shorter
prompt, once (it stalls for as long as that takes), and a slot more than there are streams, so that the prompt need not
wait for one.

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
class Visit:
    """Of one long prompt; times in seconds."""

    calm: list[float]  # gaps before it came
    again: list[float]  # and after its first token
    disturbed: list[float]  # gaps while it prefilled
    alone: tuple[float, float]  # times to first token of its like, before and after
    beside: float
    rounds: float  # tokens that each stream got meanwhile

    @property
    def pace(self) -> float:
        return median(self.calm)

    @property
    def stretch(self) -> float:
        return max(self.disturbed) / self.pace

    @property
    def decode_work(self) -> float:
        return self.rounds * mean([self.pace, median(self.again)])

    @property
    def growth(self) -> float:
        """Of the time to first token, beyond decode work."""
        return self.beside - mean(self.alone) - self.decode_work


@dataclass(frozen=True)
class Seen:
    """One server's figures."""

    name: str
    long: int  # tokens of the long prompt
    visits: list[Visit]

    def gaps(self, of: Callable[[Visit], list[float]]) -> list[float]:
        return [gap for visit in self.visits for gap in of(visit)]


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


def measure(server: Server, words: Words, long: int, visits: int, asked: argparse.Namespace) -> Seen:
    complete(server, completion(words.draw(8), 4))
    alone = [complete(server, long_prompt(words, long)).first]
    seen = []
    for _ in range(visits):
        with ExitStack() as open_streams:

            def begun(body: Mapping[str, Any], to: ExitStack = open_streams) -> Stream:
                return to.enter_context(Stream(server, body))

            talkers, guest = visit(begun, words, long, asked)
        alone.append(complete(server, long_prompt(words, long)).first)
        seen.append(seen_of(talkers, guest, (alone[-2], alone[-1])))
    return Seen(server.name, long, seen)


def visit(
    begun: Callable[[Mapping[str, Any]], Stream], words: Words, long: int, asked: argparse.Namespace
) -> tuple[list[Talker], Stream]:
    """Some time of the streams to themselves, the long prompt, and the same time again."""
    lengths = [asked.answer * (place + 1) // asked.streams for place in range(asked.streams)]
    talkers = [Talker(begun, words, length, asked.answer) for length in lengths]
    talk(talkers, [], lambda: all(talker.tokens > asked.calm for talker in talkers))
    guest = begun(long_prompt(words, long))
    talk(talkers, [guest], lambda: bool(guest.arrivals))
    seen = [talker.tokens for talker in talkers]
    talk(talkers, [], lambda: all(t.tokens > n + asked.calm for t, n in zip(talkers, seen, strict=True)))
    return talkers, guest


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


def seen_of(talkers: Sequence[Talker], guest: Stream, alone: tuple[float, float]) -> Visit:
    came, first = guest.asked, guest.arrivals[0]
    settled = max(talker.answers[0].arrivals[0] for talker in talkers)
    streams = [answer for talker in talkers for answer in talker.answers if answer.arrivals]
    pairs = [pair for stream in streams for pair in pairwise(stream.arrivals)]
    meanwhile = sum(told(stream, came, first) for stream in streams)
    return Visit(
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

    def each(what: str, of: Callable[[Visit], str], more: Callable[[Seen], str] = lambda _: "") -> str:
        return row(what, *("; ".join(map(of, seen.visits)) + more(seen) for seen in every))

    def median_growth(seen: Seen) -> str:
        return f"; median {median(v.growth for v in seen.visits):+.2f} s" if len(seen.visits) > 1 else ""

    yield row("", *(seen.name for seen in every))
    yield row("---", *("---" for _ in every))
    yield row("tokens of the long prompt", *(str(seen.long) for seen in every))
    calm, again = ([seen.gaps(of) for seen in every] for of in (lambda v: v.calm, lambda v: v.again))
    yield row("undisturbed gap: median, largest", *(f"{_ms(median(gaps))}, {_ms(max(gaps))}" for gaps in calm))
    yield row("the same after the prompt", *(f"{_ms(median(gaps))}, {_ms(max(gaps))}" for gaps in again))
    disturbed = [seen.gaps(lambda v: v.disturbed) for seen in every]
    middles = (f"{_ms(median(gaps))}, {_ms(quantile(gaps, 0.95))}" for gaps in disturbed)
    yield row("gap while it prefills: median, 95 %", *middles)
    yield each("largest gap while it prefills", lambda v: _ms(max(v.disturbed)))
    yield each(f"largest over the undisturbed median (goal {GOAL:.0f})", lambda v: f"{v.stretch:.1f}")
    yield each("its first token alone: before, after", lambda v: ", ".join(f"{t:.2f} s" for t in v.alone))
    yield each("its first token beside the streams", lambda v: f"{v.beside:.2f} s")
    work = "tokens of each stream meanwhile, and their decode work"
    yield each(work, lambda v: f"{v.rounds:.0f}, {v.decode_work:.2f} s")
    yield each("growth beyond that (goal: none)", lambda v: f"{v.growth:+.2f} s", median_growth)


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
    parser.add_argument("--visits", type=int, default=1, metavar="N", help="of the long prompt, on Puna")
    parser.add_argument("--calm", type=int, default=512, metavar="N", help="tokens of each client before and after")
    asked = parser.parse_args()
    words = Words(asked.file)
    gc.disable()  # it would be a gap of ours
    print(f"{asked.streams} streams; {asked.calm} tokens of each before the long prompt.")
    usual = BEFORE + asked.answer
    with puna(asked.file, asked.threads, max(asked.long, usual) + 1) as server:
        every = [measure(server, words, asked.long, asked.visits, asked)]
    print("\n" + "\n".join(table(every)) + "\n", flush=True)
    if asked.peer:
        slots, context = asked.streams + 1, max(asked.peer_long, usual) + 1
        with llama_server(asked.peer, asked.file, asked.threads, context, slots) as server:
            every.append(measure(server, words, asked.peer_long, 1, asked))
        print("\n" + "\n".join(table(every)))


if __name__ == "__main__":
    main()
