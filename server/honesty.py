"""Parameters that are not honoured: refused when ignoring them would change the answer's meaning, else warned of.

Nothing is dropped in silence. A rule has values that change nothing, for which there is nothing to say.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import BaseModel

from server.errors import Unsupported

MOST_WARNINGS = 32

Warnings = list[dict[str, str]]


@dataclass(frozen=True)
class Rule:
    refuses: bool
    why: str
    neutral: tuple[object, ...] = ()


def _refuse(why: str, *neutral: object) -> Rule:
    return Rule(True, why, neutral)


def _warn(why: str, *neutral: object) -> Rule:
    return Rule(False, why, neutral)


_STRUCTURED = _refuse("structured output is not supported yet")
_NO_EFFECT = _warn("has no effect here")

SHARED: Mapping[str, Rule] = {
    "grammar": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "json_schema": _STRUCTURED,
    "structured_outputs": _STRUCTURED,
    "user": _NO_EFFECT,
    "stream_options.include_obfuscation": _warn("streams are not padded", False),
}

CHAT: Mapping[str, Rule] = {
    **SHARED,
    "audio": _refuse("this server writes text only"),
    "chat_template": _refuse("the model's own template is used"),
    "continue_final_message": _refuse("continuing a message is not supported yet", False),
    "add_generation_prompt": _refuse("only true is supported", True),
    "function_call": _refuse("deprecated; use tool_choice", "none", "auto"),
    "functions": _refuse("deprecated; use tools"),
    "messages.annotations": _warn("is not shown to the model", []),  # OpenAI's own answers have it
    "messages.audio": _refuse("this server reads text only"),
    "messages.function_call": _refuse("deprecated; use tool_calls"),
    "messages.refusal": _warn("is not shown to the model"),
    "metadata": _NO_EFFECT,
    "modalities": _refuse("this server writes text only", ["text"]),
    "moderation": _NO_EFFECT,
    "prediction": _refuse("predicted outputs are not supported"),
    "prompt_cache_options": _NO_EFFECT,
    "prompt_cache_retention": _NO_EFFECT,
    "reasoning_effort": _NO_EFFECT,
    "response_format": _refuse("structured output is not supported yet", {"type": "text"}),
    "safety_identifier": _NO_EFFECT,
    "store": _warn("nothing is stored", False),
    "tools.function.strict": _warn("arguments are not held to the schema", False),
    "verbosity": _NO_EFFECT,
    "web_search_options": _refuse("this server does not search the web"),
}

COMPLETION: Mapping[str, Rule] = {
    **SHARED,
    "best_of": _refuse("only 1 is supported", 1),
    "response_format": _refuse("structured output is not supported yet", {"type": "text"}),
    "suffix": _refuse("filling in the middle is not supported yet", ""),
}

_UNKNOWN = _warn("is not a parameter that this server knows")


def warning(param: str, why: str) -> dict[str, str]:
    return {"param": param, "message": f"{param} {why}"}


def examine(body: BaseModel, rules: Mapping[str, Rule]) -> Warnings:
    """A warning for each parameter that will not be honoured; raises Unsupported for one that must not be ignored."""
    ignored: dict[str, tuple[str, Rule]] = {}  # by the path without list positions: the first that was met
    for param, general, value in _extras(body, "", ""):
        rule = rules.get(general, _UNKNOWN)
        if value is None or any(value == neutral and type(value) is type(neutral) for neutral in rule.neutral):
            continue
        if rule.refuses:
            raise Unsupported(f"{param[:100]}: {rule.why}", param[:100])
        ignored.setdefault(general, (param[:100], rule))
    warnings = [
        warning(param, f"{rule.why}; it was ignored") for param, rule in islice(ignored.values(), MOST_WARNINGS)
    ]
    if len(ignored) > MOST_WARNINGS:
        warnings.append({"param": "", "message": f"and {len(ignored) - MOST_WARNINGS} more parameters were ignored"})
    return warnings


def _extras(body: BaseModel, path: str, general: str) -> Iterator[tuple[str, str, object]]:
    """Every parameter outside the schema: its path, the path without list positions, its value."""
    for name, value in (body.model_extra or {}).items():
        yield path + name, general + name, value
    for name in body.model_fields_set & type(body).model_fields.keys():
        value = body.__dict__[name]
        below = value if isinstance(value, list) else [value]
        for position, item in enumerate(below):
            if not isinstance(item, BaseModel):
                break  # items of one list are of one kind, and there may be millions of numbers
            step = f"{name}.{position}." if isinstance(value, list) else f"{name}."
            yield from _extras(item, path + step, f"{general}{name}.")
