"""The models that are served: each a card, which knows text, and an engine, which knows tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import time
from typing import Protocol

from engine.client import Runner
from models.tokenizer import Tokenizer
from quant.errors import PunaError
from server.errors import InvalidRequest, ModelNotFound
from server.guard import Guard
from server.recall import Memory


class Template(Protocol):
    def render(
        self,
        messages: list[dict[str, object]],
        tools: list[dict[str, object]] | None,
        *,
        add_generation_prompt: bool = True,
        extra: dict[str, object] | None = None,
    ) -> str: ...


class Card(Protocol):
    """What a model's file says about text."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> Template | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Served:
    """A model under the name that requests use."""

    name: str
    card: Card
    engine: Runner
    created: int = field(default_factory=lambda: int(time()))

    @cached_property
    def guard(self) -> Guard:
        return Guard(self.card.tokenizer)

    @cached_property
    def memory(self) -> Memory:
        return Memory(self.card.tokenizer, answers=self.engine.ready.answers_serve)

    @property
    def fingerprint(self) -> str:
        """Requests with equal fingerprints, parameters and seeds get equal tokens."""
        return f"puna-{self.engine.ready.device}"


def check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise PunaError(f"two models have one name: {', '.join(sorted(names))}")


class Store:
    """The served models by name. Names are unique."""

    def __init__(self, models: Sequence[Served]) -> None:
        assert models, "a server has something to serve"
        check_names([served.name for served in models])
        self._models = {served.name: served for served in models}

    @property
    def models(self) -> Mapping[str, Served]:
        return self._models

    def find(self, name: str | None) -> Served:
        """The model of that name; without a name, the only one."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name is None:
            raise InvalidRequest(f"which model? There is {', '.join(self._models)}", "model")
        if name not in self._models:
            raise ModelNotFound(name, list(self._models))
        return self._models[name]

    async def close(self) -> None:
        for served in self._models.values():
            await served.engine.close()
            served.card.close()
