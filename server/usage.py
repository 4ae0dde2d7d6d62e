"""What a request cost, in tokens."""

from server.generation import Generation


def usage(generation: Generation) -> dict[str, object]:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
