"""The byte-level tokenizer of language models with random weights: 256 bytes and four special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BEGIN, END, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
SPECIAL = (BEGIN, END, PAD, IMAGE)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every text is its UTF-8 bytes: byte b is token b, so byte 0 is token 0 and a real token."""
    words = {character: byte for byte, character in enumerate(_byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )


def id_of(tokenizer: PreTrainedTokenizerFast, special: str) -> int:
    """The token of one of the special words."""
    found = tokenizer.convert_tokens_to_ids(special)
    if not isinstance(found, int):
        raise TypeError(f"{special!r} is not one token")
    return found


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text; `</s>` in it is five bytes that a user wrote, never the end of an answer."""
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of tokens, without the special ones."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in the order of the bytes: bytes that print stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]
