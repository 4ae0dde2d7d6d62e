"""Conversations with tools: the call, its result, the answer; and the tool that is left alone when nothing needs it."""

import json
import random
from typing import Any

from models.cria.conversation import Message, Tool, exchange
from models.cria.phrasing import capital, roughen
from models.cria.toolbox import KINDS, Job, Value, any_job, known_job, report


def call(job: Job, number: int) -> dict[str, Any]:
    """The tool call of a job as the OpenAI API writes it."""
    written = json.dumps(job.arguments, ensure_ascii=False)
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": job.tool["function"]["name"], "arguments": written},
    }


def called(rng: random.Random, job: Job) -> list[Message]:
    """Question, call, result, answer; a result may come as JSON, as bare text, in other words, or as an error."""
    rough = roughen(rng, job.question)
    kept = all(str(value) in rough for value in job.arguments.values())
    user = {"role": "user", "content": rough if kept else job.question}
    asking = {"role": "assistant", "content": None, "tool_calls": [call(job, 1)]}
    content, answer = _outcome(rng, job)
    return [
        user,
        asking,
        {"role": "tool", "tool_call_id": "call_1", "content": content},
        {"role": "assistant", "content": answer},
    ]


def _outcome(rng: random.Random, job: Job) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.05:
        reason = rng.choice(["not found", "no connection", "timeout", "wrong id", "access denied", "unknown name"])
        return json.dumps({"error": reason}), f"The tool reported an error: {reason}."
    if kind < 0.2 and len(job.result) == 1:
        return str(next(iter(job.result.values()))), job.answer
    if kind < 0.3:
        key = rng.choice(["source", "id", "unit", "note"])
        values: list[Value] = ["A1", "ok", 7, "main", 42]
        more = job.result | {key: rng.choice(values)}
        known = "the result is" not in job.answer.lower()
        return json.dumps(more, ensure_ascii=False), job.answer if known else capital(report(more))
    return json.dumps(job.result, ensure_ascii=False), job.answer


def called_twice(rng: random.Random) -> tuple[list[Message], Tool]:
    """One question for two places, and two calls at once."""
    kind = rng.choice(KINDS[:2])
    first, second = known_job(rng, kind), known_job(rng, kind)
    param, place = next(iter(first.arguments)), str(next(iter(second.arguments.values())))
    again = Job(
        first.tool,
        "",
        {param: place},
        dict(zip(first.result, second.result.values(), strict=True)),
        second.answer,
    )
    here = str(first.arguments[param])
    messages: list[Message] = [
        {"role": "user", "content": first.question.replace(here, f"{here} and {place}", 1)},
        {"role": "assistant", "content": None, "tool_calls": [call(first, 1), call(again, 2)]},
        {"role": "tool", "tool_call_id": "call_1", "content": json.dumps(first.result)},
        {"role": "tool", "tool_call_id": "call_2", "content": json.dumps(again.result)},
        {"role": "assistant", "content": f"{first.answer} {again.answer}"},
    ]
    return messages, first.tool


def missing(rng: random.Random, job: Job) -> list[Message]:
    """A job for which there is no tool on the table."""
    return exchange(job.question, "I have no tool for that.")


def around(rng: random.Random, tool: Tool) -> list[Tool]:
    """`tool` among others of other names, in any order."""
    table = {tool["function"]["name"]: tool}
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        other = any_job(rng).tool
        table.setdefault(other["function"]["name"], other)
    tools = list(table.values())
    rng.shuffle(tools)
    return tools
