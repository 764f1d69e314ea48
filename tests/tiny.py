"""A tiny checkpoint and a tiny bundle, made from nothing in a few seconds.

`python -m tests.tiny FOLDER` writes the bundle, for checks outside the test suite.
"""

import string
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from amlr.runtime.image import ImageSpec
from amlr.runtime.manifest import DecoderSettings, TokenIds
from amlr.runtime.text import TextSpec
from amlr.training.checkpoint import Checkpoint, save_checkpoint

try:
    from tiny_model import IMAGE_SIZE, VOCABULARY, tiny_config, tiny_model
except ModuleNotFoundError:  # run as a module from the project's root
    from tests.tiny_model import IMAGE_SIZE, VOCABULARY, tiny_config, tiny_model

_WORDS = ("the", "in", "at", "paris", "jordan", "apple", "new", "york", "st", "##son", "##ing")
TOKEN_IDS = TokenIds(pad_id=0, unk_id=1, cls_id=2, sep_id=3)


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer over single characters and a few words."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS]
    for char in string.ascii_lowercase + string.digits + string.punctuation:
        pieces += [char, f"##{char}"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def tiny_checkpoint(seed: int = 0, **config: Any) -> Checkpoint:
    """A random model with everything around it; its bias lets some units win."""
    settings = tiny_config(**config)
    return Checkpoint(
        config=settings,
        weights=tiny_model(settings, seed).state_dict(),
        tokenizer_json=tiny_tokenizer().to_str(),
        token_ids=TOKEN_IDS,
        text=TextSpec(max_tokens=64, overlap_tokens=16, max_word_tokens=16),
        image=ImageSpec(size=IMAGE_SIZE),
        decoder=DecoderSettings(kind="joint", bias=0.5, weight=0.5),
        provenance={"data": "random weights"},
    )


def tiny_bundle(out: Path, seed: int = 0, **config: Any) -> Path:
    """Export a tiny checkpoint to `out`."""
    from amlr.export.pipeline import export_checkpoint

    path = out.parent / "tiny.pt"
    save_checkpoint(path, tiny_checkpoint(seed, **config))
    export_checkpoint(path, out)
    path.unlink()
    return out


if __name__ == "__main__":
    print(tiny_bundle(Path(sys.argv[1])))
