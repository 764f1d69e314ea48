"""`best.pt` in and out, and files that only pretend to be one."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from amlr.errors import CheckpointError
from amlr.training.checkpoint import save_atomically, save_checkpoint
from amlr.training.release import load_any_checkpoint
from tiny import tiny_checkpoint


def test_everything_comes_back(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    save_checkpoint(tmp_path / "deep" / "best.pt", checkpoint)
    again = load_any_checkpoint(tmp_path / "deep" / "best.pt")
    for name in ("config", "token_ids", "text", "image", "decoder", "provenance"):
        assert getattr(again, name) == getattr(checkpoint, name)
    assert again.tokenizer_json == checkpoint.tokenizer_json
    assert all(torch.equal(again.weights[k], v) for k, v in checkpoint.weights.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["best.pt"]
    posts = [("Jordan in Paris", None)]
    windows = [c.build_text_encoder().encode(posts)[0].windows[0] for c in (checkpoint, again)]
    assert windows[0].input_ids_t.tolist() == windows[1].input_ids_t.tolist()


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("exploded",)


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb()))


def _torch_pickle(path: Path) -> None:
    torch.save({"format": "amlr-checkpoint", "weights": _Bomb()}, path)


def _truncated(path: Path) -> None:
    save_checkpoint(path, tiny_checkpoint())
    path.write_bytes(path.read_bytes()[:-5000])


def _other_dict(path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2)}, path)


def _tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def _incomplete(path: Path) -> None:
    torch.save({"format": "amlr-checkpoint", "version": 1, "config": {}}, path)


def _future(path: Path) -> None:
    torch.save({"format": "amlr-checkpoint", "version": 99}, path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _missing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_pickle, "nothing in it was run"),
        (_torch_pickle, "nothing in it was run"),
        (_truncated, "damaged"),
        (_other_dict, "neither"),
        (_tensor, "holds a Tensor"),
        (_incomplete, "incomplete"),
        (_future, "version 99"),
        (_empty, "damaged"),
        (_missing, "no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_never_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=message):
        load_any_checkpoint(tmp_path / "best.pt")
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_shape_are_named() -> None:
    checkpoint = tiny_checkpoint()
    weights: dict[str, Any] = dict(checkpoint.weights)
    weights["span_head.bias"] = torch.zeros(2)
    object.__setattr__(checkpoint, "weights", weights)
    with pytest.raises(CheckpointError, match=r"span_head\.bias"):
        checkpoint.build_model()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    save_atomically(path, {"a": 1})
    with pytest.raises(AttributeError):
        save_atomically(path, {"a": lambda: None})
    assert torch.load(path, weights_only=True) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]
