"""Trains cria on the CPU: makes the corpus, the tokenizer and the network from one seed, and saves all three."""

import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from models.cria import tokenizer as vocabulary
from models.cria.corpus import documents
from models.cria.network import Network, Shape
from models.cria.render import text

Ids = NDArray[np.int64]
IGNORED = -100
CHUNK = 2_000  # documents encoded at a time
WIDTHS = [*range(16, 128, 8), *range(128, 256, 16), *range(256, 513, 32), 640, 768, 1024, 1536]  # of a padded row
ROUND = 256  # tokens that are learnt from, rounded up for the same reason
SHUFFLED = 48  # passes held back, so that a step sees long texts and short ones
OTHERS = 0.15  # share of the tokens outside answers that are learnt from as well


@dataclass(frozen=True)
class Plan:
    """What a training run is made of."""

    seed: int = 7862
    tokens: int = 8_500_000
    pass_tokens: int = 2_048  # of one forward pass
    step_passes: int = 2  # of one optimiser step
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    warm_up: float = 0.02


def targets(ids: Ids, rng: np.random.Generator, others: float) -> Ids:
    """The next token where it is to be learnt: in answers up to their end, in prose, and here and there elsewhere."""
    following = np.append(ids[1:], IGNORED)
    chat = ids[0] < len(vocabulary.CONTROL)
    if not chat:
        return following
    inside = np.zeros(len(ids), bool)
    speaking = False
    for at, token in enumerate(ids):
        speaking = token == vocabulary.ASSISTANT_ID or (speaking and token != vocabulary.END_ID)
        inside[at] = speaking
    return np.where(inside | (rng.random(len(ids)) < others), following, IGNORED)


def encoded(tokenizer: Tokenizer, seed: int) -> Iterator[Ids]:
    """The corpus as token ids, one array for each document."""
    source = documents(seed)
    while True:
        texts = [text(document) for document in islice(source, CHUNK)]
        for encoding in tokenizer.encode_batch(texts):
            if len(encoding.ids) <= WIDTHS[-1]:
                yield np.array(encoding.ids, np.int64)


def passes(source: Iterator[Ids], size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets (B, T) of documents of like length, in few shapes: every new shape costs a compilation."""
    waiting: dict[int, list[Ids]] = {}
    ready: list[tuple[Tensor, Tensor]] = []
    for ids in source:
        length = next(width for width in WIDTHS if len(ids) <= width)
        rows = waiting.setdefault(length, [])
        rows.append(ids)
        if len(rows) < max(1, size // length):
            continue
        wanted = [targets(row, rng, OTHERS) for row in waiting.pop(length)]
        ready.append((padded(rows, length, vocabulary.PAD_ID), padded(wanted, length, IGNORED)))
        if len(ready) > SHUFFLED:
            yield ready.pop(int(rng.integers(len(ready))))


def padded(rows: list[Ids], length: int, fill: int) -> Tensor:
    """Rows (B, T) filled up at their ends, where causal attention never looks."""
    out = np.full((len(rows), length), fill, np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)


def gradient(network: Network, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The summed loss of the tokens that are learnt from, and its gradient; only their logits are made."""
    tokens, wanted = batch
    spots = (wanted.flatten() != IGNORED).nonzero().flatten()
    spots = F.pad(spots, (0, -len(spots) % ROUND), value=int((wanted.flatten() == IGNORED).nonzero()[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.logits(network(tokens).flatten(0, 1)[spots])
    loss = F.cross_entropy(logits.float(), wanted.flatten()[spots], ignore_index=IGNORED, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, list(network.parameters()))


def learn(network: Network, batches: list[tuple[Tensor, Tensor]], pool: ThreadPoolExecutor) -> float:
    """Leaves the gradient of one step in the network and gives the mean loss; added up in the order of the batches."""
    learnt = sum(int((wanted != IGNORED).sum()) for _, wanted in batches)
    results = list(pool.map(lambda batch: gradient(network, batch), batches))
    for parameter, *parts in zip(network.parameters(), *(grads for _, grads in results), strict=True):
        parameter.grad = torch.stack(parts).sum(0) / learnt
    return float(sum(loss for loss, _ in results)) / learnt


def optimisers(network: Network, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for block in network.blocks for p in block.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if not any(p is m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(progress: float, warm_up: float) -> float:
    """The share of the full learning rate: a short climb, a cosine down to almost nothing."""
    return min(1.0, progress / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def save(out: Path, network: Network, tokenizer: Tokenizer) -> None:
    """Leaves the checkpoint and the tokenizer in `out`."""
    torch.save({"shape": asdict(network.shape), "weights": network.state_dict()}, out / "cria.pt")
    tokenizer.save(str(out / "tokenizer.json"))


def train(plan: Plan, out: Path, workers: int) -> None:
    """Trains and saves; the log is one line every 50 steps."""
    torch.manual_seed(plan.seed)
    began = time.monotonic()
    tokenizer = vocabulary.of_corpus(plan.seed)
    network = Network(Shape(vocab=vocabulary.SIZE))
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {vocabulary.SIZE} tokens", flush=True)
    # One thread per batch and none inside: on a busy machine, threads that wait for each other in every sum lose half.
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    both = optimisers(network, plan)
    groups = [group for optimiser in both for group in optimiser.param_groups]
    full = [group["lr"] for group in groups]
    source = passes(encoded(tokenizer, plan.seed + 1), plan.pass_tokens, np.random.default_rng(plan.seed))
    seen, recent = 0, 0.0
    for at in count(1):
        share = rate(max(seen / plan.tokens, 1e-3), plan.warm_up)
        for group, lr in zip(groups, full, strict=True):
            group["lr"] = lr * share
        batches = list(islice(source, plan.step_passes))
        loss = learn(network, batches, pool)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in both:
            optimiser.step()
        seen += sum(int((tokens != vocabulary.PAD_ID).sum()) for tokens, _ in batches)
        recent = loss if at == 1 else 0.95 * recent + 0.05 * loss
        if at % 50 == 0:
            took = time.monotonic() - began
            print(
                f"step {at}  tokens {seen:,}  loss {recent:.4f}  {seen / took:.0f} tokens/s  {took / 60:.1f} min",
                flush=True,
            )
        if at % 200 == 0 or seen >= plan.tokens:
            save(out, network, tokenizer)
        if seen >= plan.tokens:
            break
    print(f"done: {seen:,} tokens, loss {recent:.4f}, {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the tokenizer")
    parser.add_argument("--tokens", type=int, default=Plan.tokens, help="tokens to read in all")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train(Plan(seed=given.seed, tokens=given.tokens), given.out, given.threads)


if __name__ == "__main__":
    main()
