"""Tokenizers built in code, and text encoders on them."""

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from amlr.runtime.text import TextEncoder, TextSpec


def wordpiece_encoder(**spec: Any) -> TextEncoder:
    """BERT-like: the tiny bundle's tokenizer."""
    from tiny import TOKEN_IDS, tiny_tokenizer

    ids = TOKEN_IDS
    return TextEncoder(
        tiny_tokenizer(),
        TextSpec(**spec),
        cls_id=ids.cls_id,
        sep_id=ids.sep_id,
        pad_id=ids.pad_id,
        unk_id=ids.unk_id,
    )


def byte_level_encoder(**spec: Any) -> TextEncoder:
    """RoBERTa-like: byte-level BPE whose only pieces are single bytes and one merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "</s>", "<pad>", "<unk>", *alphabet, "an"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "n")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return TextEncoder(tokenizer, TextSpec(**spec), cls_id=0, sep_id=1, pad_id=2, unk_id=3)
