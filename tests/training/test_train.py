"""The loop: it learns, resumes exactly, stops early, and leaves usable files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amlr.errors import CheckpointError, InputError
from amlr.training.release import load_any_checkpoint
from amlr.training.run import plot_metrics
from amlr.training.scorer import parameter_groups
from amlr.training.train import Trainer
from corpora import make_trainer


def _stop_after(updates: int) -> Callable[[], bool]:
    seen = [0]

    def should_stop() -> bool:
        seen[0] += 1
        return seen[0] >= updates

    return should_stop


def _same(first: Trainer, second: Trainer) -> bool:
    one, two = first.scorer.model.state_dict(), second.scorer.model.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("updates", "options"),
    [(3, {}), (4, {}), (1, {"accumulate": 3, "loss": "semi-crf"}), (5, {"images": False})],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, updates: int, options: dict[str, object]
) -> None:
    data = tmp_path / "data"
    whole = make_trainer(data, tmp_path / "whole" / "best.pt", **options)  # type: ignore[arg-type]
    assert whole.run()
    out = tmp_path / "cut" / "best.pt"
    cut = make_trainer(data, out, **options)  # type: ignore[arg-type]
    assert not cut.run(_stop_after(updates))
    assert load_any_checkpoint(out).build_model() is not None
    resumed = make_trainer(data, out, **options)  # type: ignore[arg-type]
    torch.manual_seed(99)  # whatever happened before the resume must not matter
    resumed.load_state()
    assert resumed.run()
    assert _same(whole, resumed)
    names = ("kind", "span_loss", "crf_loss", "dev_f1", "bias", "weight")
    lines = [
        [{k: line[k] for k in names if k in line} for line in trainer.progress.history]
        for trainer in (whole, resumed)
    ]
    assert lines[0] == lines[1]
    written = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == resumed.progress.history
    best = [torch.load(t.out, weights_only=True)["weights"] for t in (whole, resumed)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_training_learns_its_own_posts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", epochs=25, warmup=0.0)
    trainer.dev_corpus = trainer.train_corpus
    assert trainer.run()
    epochs = [line for line in trainer.progress.history if line["kind"] == "epoch"]
    assert epochs[-1]["span_loss"] < 0.5 * epochs[0]["span_loss"]
    assert trainer.progress.best_f1 > 0.6
    assert load_any_checkpoint(trainer.out).decoder.kind == "joint"
    assert plot_metrics(trainer.progress.history, tmp_path / "training.png") is not None
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


def test_training_stops_early_without_progress(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path / "data", tmp_path / "best.pt", epochs=9, lr=1e-12, head_lr=1e-12, patience=2
    )
    assert trainer.run()
    epochs = [line for line in trainer.progress.history if line["kind"] == "epoch"]
    assert len(epochs) == 3
    assert epochs[-1]["stopped_early"]


def test_an_image_encoder_can_be_trained_and_its_statistics_stay(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", epochs=1, train_image=True)
    before = {k: v.clone() for k, v in trainer.scorer.model.image.state_dict().items()}
    assert trainer.run()
    after = trainer.scorer.model.image.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("convolution.weight") for name in moved)
    assert not any("running" in name for name in moved)


def test_a_frozen_image_encoder_stays_frozen(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", epochs=1)
    before = {k: v.clone() for k, v in trainer.scorer.model.image.encoder.state_dict().items()}
    assert trainer.run()
    after = trainer.scorer.model.image.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", epochs=1)
    with pytest.raises(CheckpointError, match="no resume point"):
        trainer.load_state()
    trainer.save_state()
    trainer.fingerprint = "other"
    with pytest.raises(CheckpointError, match="another run"):
        trainer.load_state()


def test_heads_and_matrices_have_their_own_settings(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt")
    groups = parameter_groups(trainer.scorer, trainer.settings)
    assert sorted((g["lr"], g["weight_decay"]) for g in groups) == [
        (1e-3, 0.0),
        (1e-3, 0.01),
        (1e-2, 0.0),
        (1e-2, 0.01),
    ]
    wanted = sum(p.numel() for p in trainer.scorer.parameters() if p.requires_grad)
    assert sum(p.numel() for group in groups for p in group["params"]) == wanted


def test_the_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", warmup=0.5)
    (factor, *_) = trainer.schedule.lr_lambdas
    half, whole = trainer.updates // 2, trainer.updates
    assert [factor(update) for update in (0, half, whole)] == [0.0, 1.0, 0.0]
    assert factor(half + (whole - half) / 2) == 0.5


def test_divergence_is_said_with_the_rates(tmp_path: Path) -> None:
    rates = {"lr": 1e30, "head_lr": 1e30, "warmup": 0.0}
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", images=False, **rates)
    with pytest.raises(InputError, match=r"training diverged: .* lower --lr") as caught:
        trainer.run()
    assert caught.value.code == "training_diverged"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["crf_start", "text"])
def test_weights_spoilt_by_an_epochs_last_update_are_divergence_too(
    tmp_path: Path, name: str
) -> None:
    trainer = make_trainer(tmp_path / "data", tmp_path / "best.pt", images=False)
    with torch.no_grad():
        for key, weight in trainer.scorer.model.named_parameters():
            if key.startswith(name):
                weight.fill_(float("nan"))
    with pytest.raises(InputError, match="score of a dev post"):
        trainer._score_dev()
