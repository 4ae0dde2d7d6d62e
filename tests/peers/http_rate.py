"""What HTTP leaves of the engine's own speed: eight streams at once, and one.

Usage: python -m tests.peers.http_rate FILE [--rounds N] [--tokens N] [--threads N]
The same requests go through `puna serve` and, in this process, to an Engine as its child has one; beside both stand
the bare passes of `puna bench`, which sample nothing. They take turns, and the tables have medians over the rounds: of
the rates, and of each round's ratios, which is fairer where the memory's rate drifts. A rate is that of all streams
together while all of them decode, after prompts of as many tokens as those of `puna bench`. FILE should have text for
its tokens, as a real tokeniser has: a token without text does not show at the client, where pieces are counted.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter

from engine.bench import BEFORE, Measuring
from engine.bench_report import Asked
from engine.bench_samples import Measurement
from engine.engine import Engine
from engine.load import load
from engine.messages import Delta, EngineSpec, Sampling, Submit
from tests.peers.prompts import Words, completion
from tests.peers.servers import Server, arguments, puna
from tests.peers.streams import Stream, follow, rate

GOALS = {8: 0.90, 1: 0.97}  # of the engine's, by the number of streams
TEMPERATURES = (0.0, 1.0)
PASSES, ENGINE, HTTP = "passes", "engine", "HTTP"

Way = Callable[[Sequence[Sequence[int]], int, float], float]  # prompts, tokens and temperature to a rate
Case = tuple[int, float]  # streams, temperature
Rates = defaultdict[Case, list[dict[str, float]]]  # of each round, by who made them


def through_http(server: Server, prompts: Sequence[Sequence[int]], tokens: int, temperature: float) -> float:
    with ExitStack() as opened:
        streams = [
            opened.enter_context(Stream(server, completion(prompt, tokens, temperature=temperature, seed=seed)))
            for seed, prompt in enumerate(prompts)
        ]
        follow(streams)
    made, shown = tokens * len(streams), sum(len(stream.arrivals) for stream in streams)
    if any(stream.usage["completion_tokens"] != tokens for stream in streams) or 2 * shown < made:
        raise SystemExit(f"of {made} tokens {shown} had text; the streams cannot be measured by them")
    return rate([stream.arrivals for stream in streams]) * made / shown


def news_of_step(engine: Engine) -> tuple[Delta, ...]:
    """A step as the engine's child makes it."""
    running = engine.start()
    if running is None:
        return ()
    engine.prepare(running)
    return engine.finish(running)


def in_process(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, temperature: float) -> float:
    for name, prompt in enumerate(prompts):
        engine.submit(Submit(name, list(prompt), Sampling(max_tokens=tokens, temperature=temperature, seed=name)))
    arrivals: dict[int, list[float]] = {name: [] for name in range(len(prompts))}
    while engine.busy:
        for delta in news_of_step(engine):
            arrivals[delta.id] += [perf_counter()] * len(delta.tokens)
    return rate(arrivals.values())


def bare(measuring: Measuring, measurement: Measurement) -> float:
    """Of the bursts that this sample adds."""
    before = len(measurement.timed)
    measuring.sample(measurement)
    timed = measurement.timed[before:]
    return sum(one.burst.tokens for one in timed) / sum(one.seconds for one in timed)


def measure(server: Server, engine: Engine, measuring: Measuring, words: Words, asked: argparse.Namespace) -> Rates:
    """Prompts are in both caches before they are measured, so that the streams begin at once."""
    passes = {one.sequences: one for one in measuring.measurements if one.context == BEFORE}
    prompts = [words.draw(BEFORE) for _ in range(max(GOALS))]
    cases = [(streams, temperature) for streams in GOALS for temperature in TEMPERATURES]
    ways: list[tuple[str, Way]] = [(ENGINE, partial(in_process, engine)), (HTTP, partial(through_http, server))]
    for _, way in ways:
        way(prompts, asked.tokens, 0.0)
    rates: Rates = defaultdict(list)
    for number in range(asked.rounds):
        for streams, temperature in cases:
            found = {PASSES: bare(measuring, passes[streams])}
            for who, way in ways if number % 2 else reversed(ways):
                found[who] = way(prompts[:streams], asked.tokens, temperature)
            rates[streams, temperature].append(found)
    return rates


def table(rates: Rates) -> Iterator[str]:
    yield "| streams | temperature | passes alone | engine | HTTP | HTTP over engine (goal) | over passes |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for (streams, temperature), rounds in rates.items():
        cells = " | ".join(f"{median(each[who] for each in rounds):.1f}" for who in (PASSES, ENGINE, HTTP))
        ratio, bare_ratio = (median(each[HTTP] / each[who] for each in rounds) for who in (ENGINE, PASSES))
        goal = f"{ratio:.1%} ({GOALS[streams]:.0%})"
        yield f"| {streams} | {temperature:g} | {cells} | {goal} | {bare_ratio:.1%} |"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    asked = parser.parse_args()
    words = Words(asked.file)
    context = max(GOALS) * (BEFORE + asked.tokens)  # room for all streams, whatever is kept beside them
    spec = EngineSpec(path=str(asked.file), context=context, threads=asked.threads, device="cpu")
    with puna(asked.file, asked.threads, context, "--device", "cpu") as server:
        engine = load(spec).engine
        measuring = Measuring(Asked(spec=spec, context=context, repeat=asked.rounds, steps=asked.tokens, prompt=BEFORE))
        rates = measure(server, engine, measuring, words, asked)
    print(f"\nTokens a second; {asked.rounds} rounds, prompts of {BEFORE} tokens, answers of {asked.tokens}.\n")
    print("\n".join(table(rates)))


if __name__ == "__main__":
    main()
