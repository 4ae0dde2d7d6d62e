"""A byte-level BPE of 317 real tokens and three control tokens, as a GGUF's keys or a folder's tokenizer.json."""

import json
from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BEGIN, TURN, END = 317, 318, 319  # <|begin|> <|im_start|> <|im_end|>
SIZE = 320
CONTROL = {BEGIN: "<|begin|>", TURN: "<|im_start|>", END: "<|im_end|>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Each joins two tokens that stand before it; a word's letters first, with the space as byte-level BPE writes it.
_WORDS = ["Ġthe", "Ġand", "Ġllama", "Ġpuna", "Ġof", "Ġto", "Ġin", "Ġis", "Ġwhat", "Ġyou", "user", "system", "assistant"]
_MORE = ["Ġon", "Ġgrass", "Ġhigh", "er", "Ġwool", "Ġare", "Ġit"]


def merges() -> list[tuple[str, str]]:
    """61 merges, which spell the words from left to right."""
    made: dict[tuple[str, str], None] = {}
    for word in _WORDS + _MORE:
        for end in range(1, len(word)):
            made[(word[:end], word[end])] = None
    return list(made)[: BEGIN - 256]


def tokens() -> list[str]:
    """Every token's text, by its id."""
    single = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = [left + right for left, right in merges()]
    assert len(single) + len(joined) == BEGIN == len(set(single + joined)), "merges give one token each"
    return single + joined + [CONTROL[BEGIN], CONTROL[TURN], CONTROL[END]]


def write_gguf_keys(writer: gguf.GGUFWriter, size: int) -> None:
    """The tokeniser's keys; ids past its own, which padded vocabularies have, are unused tokens."""
    unused = [f"[unused{i}]" for i in range(SIZE, size)]
    kinds = [gguf.TokenType.CONTROL if i in CONTROL else gguf.TokenType.NORMAL for i in range(SIZE)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens() + unused)
    writer.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(unused))
    writer.add_token_merges([f"{left} {right}" for left, right in merges()])
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def write_folder(folder: Path, size: int) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json. A padded vocabulary's last ids have no text."""
    assert size >= SIZE, "the tokeniser has more tokens than the model"
    built = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens()[:BEGIN])}, merges()))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(CONTROL[i], special=True) for i in sorted(CONTROL)])
    built.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": CONTROL[BEGIN],
        "eos_token": CONTROL[END],
        "add_bos_token": False,
        "chat_template": TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": BEGIN, "eos_token_id": [END]}))
