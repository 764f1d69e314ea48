"""Results in the form of Hugging Face's token classification, beside the real pipeline's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline

from amlr.errors import InputError
from amlr.runtime import Engine, Post
from tiny import tiny_tokenizer

TEXT = "Jordan in New York"


def theirs() -> list[dict[str, Any]]:
    """Answer of a real pipeline around random weights in which nothing is outside."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "B-PER", 1: "I-LOC"},
        label2id={"B-PER": 0, "I-LOC": 1},
    )
    model = BertForTokenClassification(config).eval()
    tag: Any = pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple"
    )
    answer: list[dict[str, Any]] = tag(TEXT)
    return answer


def kind(value: object) -> type:
    """A float is a float, whoever computed it."""
    return float if isinstance(value, float | np.floating) else type(value)


def test_keys_and_types_are_the_pipelines(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, threads=1) as engine:
        result = engine.tag(TEXT)
    ours = result.to_transformers()
    assert ours
    shapes = {tuple((key, kind(value)) for key, value in row.items()) for row in ours}
    assert shapes == {tuple((key, kind(value)) for key, value in row.items()) for row in theirs()}
    assert [row["word"] for row in ours] == [TEXT[row["start"] : row["end"]] for row in ours]
    assert [(row["entity_group"], row["score"]) for row in ours] == [
        (entity.label, entity.score) for entity in result.entities
    ]


def test_a_failed_post_is_no_empty_answer(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, threads=1) as engine:
        (failed,) = engine.tag_batch([Post("x" * 100_001)])
    with pytest.raises(InputError, match="at most 100000") as caught:
        failed.to_transformers()
    assert caught.value.code == "text_too_long"
