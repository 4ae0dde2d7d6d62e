"""Reading a rope's scaling from the keys of a GGUF, or from a config.json in its older and newer spelling."""

from collections.abc import Mapping
from math import log

from models.facts import Facts
from models.rope import Scaling
from quant.errors import ModelFormatError, UnsupportedModel

MOST_TOKENS = 2**30
# Generous bounds of factors and of counts of turns, within which no angle overflows.
LEAST, MOST = 1e-6, 1e9


def gguf_scaling(facts: Facts, architecture: str) -> Scaling:
    prefix = f"{architecture}.rope.scaling"
    older = facts.real(f"{architecture}.rope.scale_linear", 1.0, least=LEAST, most=MOST)
    factor = facts.real(f"{prefix}.factor", older, least=LEAST, most=MOST)
    match facts.text(f"{prefix}.type", "linear"):
        case "none":
            return Scaling()
        case "linear":
            return Scaling("linear", factor)
        case "yarn":
            context = facts.count(f"{architecture}.context_length", most=MOST_TOKENS)
            attention = facts.real(f"{prefix}.attn_factor", 1.0) * facts.real(f"{prefix}.yarn_attn_factor", 1.0)
            return Scaling(
                "yarn",
                factor,
                original=facts.count(f"{prefix}.original_context_length", context, most=MOST_TOKENS),
                low=facts.real(f"{prefix}.yarn_beta_slow", 1.0, least=LEAST, most=MOST),
                high=facts.real(f"{prefix}.yarn_beta_fast", 32.0, least=LEAST, most=MOST),
                magnitude=attention * _yarn_magnitude(factor),
            )
        case kind:
            raise UnsupportedModel(facts.path, f"rope scaling of type {kind!r} is not supported")


def json_rope(facts: Facts) -> Facts:
    """The rope's numbers: in `rope_scaling` until transformers 4, in `rope_parameters` since 5."""
    rope = facts.inner("rope_scaling" if facts.has("rope_scaling") else "rope_parameters")
    if any(isinstance(value, Mapping) for value in rope.values.values()):
        raise UnsupportedModel(facts.path, "a rope for each type of layer is not supported")
    rope.refuse({"partial_rotary_factor": 1.0})
    return rope


def json_scaling(facts: Facts) -> Scaling:
    rope = json_rope(facts)
    match rope.text("rope_type", rope.text("type", "default")):
        case "default" | "none":
            return Scaling()
        case "linear":
            return Scaling("linear", rope.real("factor", least=LEAST, most=MOST))
        case "llama3":
            low = rope.real("low_freq_factor", least=LEAST, most=MOST)
            high = rope.real("high_freq_factor", least=LEAST, most=MOST)
            if low >= high:
                raise ModelFormatError(facts.path, f"low_freq_factor {low:g} is not below high_freq_factor {high:g}")
            return Scaling("llama3", rope.real("factor", least=LEAST, most=MOST), _original(facts, rope), low, high)
        case "yarn":
            return _json_yarn(facts, rope)
        case kind:
            raise UnsupportedModel(facts.path, f"rope scaling of type {kind!r} is not supported")


def json_context(facts: Facts) -> int:
    """Tokens of context. Yarn is often added to a config.json that still states the length before it."""
    scaling = json_scaling(facts)
    stretched = int(scaling.original * scaling.factor) if scaling.kind == "yarn" else 0
    return min(max(_stated_context(facts), stretched), MOST_TOKENS)


def _json_yarn(facts: Facts, rope: Facts) -> Scaling:
    factor = rope.real("factor", least=LEAST, most=MOST)
    magnitude = _yarn_magnitude(factor)
    if rope.has("mscale") and rope.has("mscale_all_dim"):
        magnitude = _yarn_magnitude(factor, rope.real("mscale")) / _yarn_magnitude(factor, rope.real("mscale_all_dim"))
    return Scaling(
        "yarn",
        factor,
        original=_original(facts, rope),
        low=rope.real("beta_slow", 1.0, least=LEAST, most=MOST),
        high=rope.real("beta_fast", 32.0, least=LEAST, most=MOST),
        magnitude=rope.real("attention_factor", magnitude),
        whole=rope.flag("truncate", True),
    )


def _yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * log(factor) + 1.0


def _original(facts: Facts, rope: Facts) -> int:
    beside = facts.count("original_max_position_embeddings", _stated_context(facts), most=MOST_TOKENS)
    return rope.count("original_max_position_embeddings", beside, most=MOST_TOKENS)


def _stated_context(facts: Facts) -> int:
    return facts.count("max_position_embeddings", 2048, most=MOST_TOKENS)
