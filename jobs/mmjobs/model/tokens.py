"""The vocabulary: what a tokenizer must have, rows for it in the model, and a tokenizer of bytes for random models."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmjobs.model.sharded import divide, shape, whole

BEGIN, END, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
SPECIAL = (BEGIN, END, PAD, IMAGE)
_ROWS = 64  # matrices of such a height are quick on every device


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


def complete(tokenizer: Any, sees: bool = True) -> None:
    """Give a tokenizer a token for padding, and one for images where its model `sees` them, where it lacks them."""
    if sees and tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        reserved = [word for word in ("<|finetune_right_pad_id|>", PAD, "<PAD>", "[PAD]") if word in known]
        tokenizer.add_special_tokens({"pad_token": reserved[0] if reserved else PAD})


def fit(language: Any, tokenizer: Any) -> None:
    """Rows for every token, in the embeddings and in the head; new ones are the mean of the old, so nothing jumps."""
    old, wanted = shape(language.get_input_embeddings().weight)[0], len(tokenizer)
    if wanted > old:
        with torch.random.fork_rng(devices=()):  # it draws what is replaced below
            language.resize_token_embeddings(wanted, pad_to_multiple_of=_ROWS, mean_resizing=False)
        layers = [language.get_input_embeddings(), language.get_output_embeddings()]
        weights = {id(layer.weight): layer.weight for layer in layers}.values()  # one where both are tied
        with torch.no_grad(), whole(weights):
            for weight in weights:
                weight[old:] = weight[:old].float().mean(0).to(weight.dtype)
        divide(language)


def id_of(tokenizer: Any, special: str) -> int:
    """The token of one of the special words."""
    number = tokenizer.convert_tokens_to_ids(special)
    if not isinstance(number, int):
        raise TypeError(f"{special!r} is not one token")
    return number


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens, without the special ones."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in the order of the bytes: bytes that print stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]
