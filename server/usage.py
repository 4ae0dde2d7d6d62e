"""What a request cost: in tokens, and in time."""

from server.generation import Generation

Json = dict[str, object]


def usage(generation: Generation) -> Json:
    prompt, completion, cached = generation.prompt_tokens, generation.completion_tokens, generation.cached_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "audio_tokens": 0,
        },
    }


def timings(generation: Generation) -> Json:
    """Of all choices together, which run side by side: the longest of their times, the sum of what they computed.

    The first token of a choice comes with its prompt, so the time of decoding is that of the others.
    """
    spent = [choice.spent for choice in generation.choices]
    queued = max((one.queued for one in spent), default=0.0)
    prefill = max((one.prefill for one in spent), default=0.0)
    decode = max((one.decode for one in spent), default=0.0)
    prefilled = sum(choice.prompt - one.cached for choice, one in zip(generation.choices, spent, strict=True))
    return {
        "queued_ms": round(queued * 1e3, 3),
        "prefill_ms": round(prefill * 1e3, 3),
        "decode_ms": round(decode * 1e3, 3),
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "prefilled_tokens": prefilled,
        "completion_tokens": generation.completion_tokens,
        "prefill_tokens_per_second": _rate(prefilled, prefill),
        "decode_tokens_per_second": _rate(sum(max(choice.sampled - 1, 0) for choice in generation.choices), decode),
        **({"cache_miss": generation.miss.wire} if generation.miss is not None else {}),
    }


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 2) if seconds > 0 else None
