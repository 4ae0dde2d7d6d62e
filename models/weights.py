"""Finding a model's weights in a checkpoint: each present, of the right shape, and none left over."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from models.config import ModelConfig
from models.names import OF_LAYER, OF_MODEL, SPARE, SPARE_WHEN_TIED, Slot, conditions, sides
from quant.checkpoint import Checkpoint, Tensor
from quant.errors import ModelFormatError, UnsupportedModel

Place = str | tuple[int, str]  # a slot of the model, or of a layer


@dataclass(frozen=True)
class Found:
    """The tensors of a model by their places; all were checked before any is read."""

    tensors: Mapping[Place, Tensor]

    def __getitem__(self, place: Place) -> Tensor:
        return self.tensors[place]


def find(config: ModelConfig, checkpoint: Checkpoint) -> Found:
    spelling = _spelling(checkpoint)
    found: dict[Place, Tensor] = {}
    for place, slot in _places(config):
        layer = place[0] if isinstance(place, tuple) else 0
        found[place] = _tensor(config, checkpoint, slot, spelling(slot).format(layer))
    _refuse_others(config, checkpoint, {tensor.name for tensor in found.values()})
    return Found(found)


def _places(config: ModelConfig) -> Iterator[tuple[Place, Slot]]:
    holds = conditions(config)
    yield from ((slot.name, slot) for slot in OF_MODEL if holds[slot.when])
    for layer in range(config.layers):
        yield from (((layer, slot.name), slot) for slot in OF_LAYER if holds[slot.when])


def _spelling(checkpoint: Checkpoint) -> Callable[[Slot], str]:
    """Whether the file calls its tensors as GGUF does or as the hub does."""
    table = OF_MODEL[0]
    if table.gguf in checkpoint.tensors:
        return lambda slot: slot.gguf
    if table.hub in checkpoint.tensors:
        return lambda slot: slot.hub
    raise ModelFormatError(checkpoint.path, f"holds neither {table.gguf} nor {table.hub}")


def _tensor(config: ModelConfig, checkpoint: Checkpoint, slot: Slot, name: str) -> Tensor:
    if name not in checkpoint.tensors:
        raise ModelFormatError(checkpoint.path, f"tensor {name} is missing")
    tensor = checkpoint.tensors[name]
    due = tuple(sides(config)[side] for side in slot.sides)
    if tensor.shape != due:
        raise ModelFormatError(checkpoint.path, f"tensor {name} has shape {tensor.shape}; the model's sizes make {due}")
    return tensor


def _refuse_others(config: ModelConfig, checkpoint: Checkpoint, used: set[str]) -> None:
    spare = SPARE + SPARE_WHEN_TIED if config.tied else SPARE
    for name in checkpoint.tensors:
        if name not in used and not name.endswith(spare):
            raise UnsupportedModel(
                checkpoint.path, f"tensor {name} is no part of a {config.architecture} model of {config.layers} layers"
            )
