"""A model as its users meet it: seconds until it serves, tokens a second, and the most memory all its processes had.

Usage: python -m tests.peers.served MODEL [--ctx N] [--threads N]
Starts `puna serve`, streams short answers (the median rate of three counts), then fills the context, and samples the
proportional memory (Pss) of the server and its children every 50 ms from start to end. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PORT = 7869
URL = f"http://127.0.0.1:{PORT}"


def family(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def memory(pid: int) -> int:
    """Bytes of the family; a process that is just leaving counts nothing."""
    total = 0
    try:
        for member in family(pid):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    except OSError:
        return 0
    return total * 1024


class Watch(threading.Thread):
    """The most memory seen."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most = pid, 0

    def run(self) -> None:
        while True:
            self.most = max(self.most, memory(self.pid))
            time.sleep(0.05)


def until_healthy() -> None:
    while True:
        try:
            urllib.request.urlopen(f"{URL}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.01)


def arrivals(model: str, prompt: list[int], tokens: int) -> list[float]:
    """When each token of a greedy streamed answer came; a keep-alive event brings none."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "logprobs": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        return [time.perf_counter() for line in answer if b'"token_logprobs":[' in line]


def rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    limits = ["--ctx", str(asked.ctx), "--threads", str(asked.threads), "--port", str(PORT)]
    puna = Path(sys.executable).with_name("puna")
    began = time.perf_counter()
    server = subprocess.Popen([puna, "serve", asked.model, *limits], stderr=subprocess.DEVNULL, env=os.environ)
    try:
        watch = Watch(server.pid)
        watch.start()
        until_healthy()
        print(f"ready to serve        {time.perf_counter() - began:.2f} s")
        with urllib.request.urlopen(f"{URL}/v1/models") as answer:
            model = json.load(answer)["data"][0]["id"]
        rates = [rate(arrivals(model, list(range(100, 110)), 64)) for _ in range(3)]
        print(f"decode                {statistics.median(rates):.1f} tok/s")
        began = time.perf_counter()
        times = arrivals(model, [100 + i % 1000 for i in range(asked.ctx - 32)], 32)
        print(f"prefill of {asked.ctx - 32} tokens {(asked.ctx - 32) / (times[0] - began):.1f} tok/s")
        print(f"decode after it       {rate(times):.1f} tok/s")
        print(f"peak memory           {watch.most / 1e9:.3f} GB, context of {asked.ctx} tokens filled")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
