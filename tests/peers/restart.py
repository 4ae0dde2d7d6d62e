"""A long prefix and the disk: time to first token cold, after a restart, and after a sudden death.

Usage: python -m tests.peers.restart FILE [--prefix N] [--threads N] [--folder DIR]
Starts `puna serve` with --kv-disk, sends a prompt that nobody has seen, stops the server with SIGTERM, starts it again
on the same folder and sends the prompt again; then the same with kill -9 to all its processes, as soon as the server
says that the prompt's pages are on disk. Before each start the kernel drops the folder's files from its own cache, so
that pages come from the disk; then once more with them left there. Answers are compared: they are the same text.
DIR is where the folder is made, for another disk than that of temporary files.
"""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from kvcache.pages import PAGE
from tests.peers.prompts import Words, completion
from tests.peers.served import family
from tests.peers.servers import Server, arguments, puna
from tests.peers.streams import complete

ANSWER = 8  # tokens; greedy, so they are the same each time
SPARE = 256  # tokens of context beyond the prefix
SLOWEST_STORING = 120  # seconds
GOAL = 10.0

End = Callable[[Server, int], None]  # of a server that should have so many pages on disk by then


@dataclass(frozen=True)
class Asked:
    """One prompt's first token, and what was there of it."""

    how: str
    seconds: float
    cached: int
    text: str


@dataclass(frozen=True)
class Case:
    """A file, the folder of its pages, and a way to serve and to ask."""

    file: Path
    folder: Path
    threads: int
    context: int

    def asking(self, how: str, prompt: Sequence[int], warm_up: Sequence[int], end: End) -> Asked:
        """The answer of a fresh server, which then comes to this end."""
        with puna(self.file, self.threads, self.context, "--kv-disk", str(self.folder)) as server:
            complete(server, completion(warm_up, 4))
            before = pages_on_disk(server)
            stream = complete(server, completion(prompt, ANSWER))
            end(server, before + len(prompt) // PAGE)
        return Asked(how, stream.first, stream.cached, stream.text)


def leaving(server: Server, pages: int) -> None:
    """SIGTERM, which a server gets at the end of its block whatever the number of its pages."""


def killed(server: Server, pages: int) -> None:
    """All its processes at once, when so many pages are on disk."""
    until = time.monotonic() + SLOWEST_STORING
    while pages_on_disk(server) < pages:
        if time.monotonic() > until:
            raise SystemExit(f"after {SLOWEST_STORING} s {pages_on_disk(server)} pages of {pages} are on disk")
        time.sleep(0.1)
    for process in list(family(server.process.pid)):
        os.kill(process, signal.SIGKILL)


ENDS: dict[str, End] = {"SIGTERM": leaving, "kill -9": killed}


def pages_on_disk(server: Server) -> int:
    """As the server says."""
    (state,) = server.get("/v1/puna/cache")["models"].values()
    return int(state["disk"]["pages"])


def forgotten_by_the_kernel(folder: Path) -> None:
    """Its files are read from the disk next time."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rounds(case: Case, words: Words, prefix: int) -> Iterator[list[Asked]]:
    """The cold answer and those that follow it, for each way to end."""
    for name, end in ENDS.items():
        prompt = words.draw(prefix)
        cold = case.asking(f"cold, then {name}", prompt, words.draw(8), end)
        forgotten_by_the_kernel(case.folder)
        from_disk = case.asking(f"after {name}, pages on disk", prompt, words.draw(8), leaving)
        at_hand = case.asking(f"after {name}, pages in the kernel's cache", prompt, words.draw(8), leaving)
        yield [cold, from_disk, at_hand]


def table(every: Sequence[Sequence[Asked]]) -> Iterator[str]:
    cold = mean(asked[0].seconds for asked in every)
    yield f"| | time to first token | shorter than cold (goal {GOAL:.0f}) | tokens found | same answer |"
    yield "| --- | --- | --- | --- | --- |"
    for first, *rest in every:
        for asked in (first, *rest):
            same = "yes" if asked.text == first.text else "NO"
            yield f"| {asked.how} | {asked.seconds:.2f} s | {cold / asked.seconds:.1f} | {asked.cached} | {same} |"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prefix", type=int, default=8000)
    parser.add_argument("--folder", type=Path, metavar="DIR")
    asked = parser.parse_args()
    words = Words(asked.file)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        case = Case(asked.file, Path(folder), asked.threads, asked.prefix + SPARE)
        every = list(rounds(case, words, asked.prefix))
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"\nA prompt of {asked.prefix} tokens; {stored / 1e6:.0f} MB on disk.\n")
    print("\n".join(table(every)))


if __name__ == "__main__":
    main()
