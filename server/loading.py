"""Model files become served models: every card is read before the first engine starts, bad files being cheap to see."""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from engine.client import EngineClient
from engine.messages import EngineSpec
from models.card import Card, open_card
from server.served import Served, Store, check_names

_log = logging.getLogger(__name__)


def name_of(path: Path) -> str:
    """What requests call the model: the file's name, or the folder's, which is what the user sees and can choose."""
    path = Path(os.path.abspath(path))  # links are not followed: in a hub's cache they lead to a file named by its hash
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem) if path.suffix == ".gguf" else path.name


async def open_models(paths: Sequence[Path], like: EngineSpec) -> Store:
    """All of them, with engines like the one specified but for its path; or none."""
    check_names([name_of(path) for path in paths])
    cards: list[Card] = []
    models: list[Served] = []
    try:
        for path in paths:
            cards.append(await asyncio.to_thread(open_card, path))
        for path, card in zip(paths, cards, strict=True):
            models.append(Served(name_of(path), card, await EngineClient.start(replace(like, path=str(path)))))
            ready, name = models[-1].engine.ready, models[-1].name
            _log.info("%s: %d tokens of context, %s, %.1f s", name, ready.context, ready.device, ready.seconds)
            _log.info("%s: prompts on the %s: %s", name, ready.prefill.upper(), ready.reason)
    except BaseException:
        for served in models:
            await served.engine.close()
        for card in cards:
            card.close()
        raise
    return Store(models)
