"""The training loop: updates, dev scores after each epoch, exact resume, early stop.

Everything random is a function of the seed and the position (order, hidden pictures) or of the
generator that is saved with the state (dropout), so an interrupted run continues bit for bit.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

from amlr.cli_support import progress
from amlr.errors import CheckpointError, InputError
from amlr.runtime.manifest import DecoderSettings
from amlr.training.checkpoint import Checkpoint, read_plain, save_atomically, save_checkpoint
from amlr.training.data import Batch, Corpus, collate, length_batches
from amlr.training.evaluate import tune_joint, tune_segmental
from amlr.training.model import AmlrModel
from amlr.training.predict import decode, make_decoder, predict
from amlr.training.score import count_spans
from amlr.training.scorer import Objective, Scorer, parameter_groups
from amlr.training.settings import TrainSettings

_LOG_UPDATES = 20
_STATE_FORMAT = "amlr-training-state"


@dataclass(kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Current epoch, from 0.
        batch: Batches of this epoch already seen.
        best_f1: Best dev F1 so far, -1 before the first.
        bad_epochs: Epochs since then.
        history: Lines of `metrics.jsonl`.
        sums: Loss sums, tokens and seconds of the current epoch.
        is_done: No epoch left, or stopped early.
    """

    epoch: int = 0
    batch: int = 0
    best_f1: float = -1.0
    bad_epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    is_done: bool = False

    def add(self, **values: float) -> None:
        """Add to the epoch's sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


class Trainer:
    """Train one model; see `run`."""

    def __init__(
        self,
        model: AmlrModel,
        settings: TrainSettings,
        *,
        train: Corpus,
        dev: Corpus,
        template: Checkpoint,
        out: Path,
        fingerprint: str = "",
        device: str | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            model: Freshly built, on the CPU.
            settings: How to train.
            train: Training corpus.
            dev: Corpus that chooses the best epoch, b and w.
            template: Everything of the checkpoint but its weights.
            out: Where the best model goes; its folder takes state, metrics and plot.
            fingerprint: Names data and settings; a state with another one is refused.
            device: `cpu` keeps a run off the GPU.
        """
        self.settings = settings
        self.train_corpus, self.dev_corpus = train, dev
        self.template, self.out, self.fingerprint = template, out, fingerprint
        # Posts without a picture leave the image side without gradients.
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.scorer = Scorer(model, train_image=settings.train_image, use_bf16=settings.use_bf16)
        optimizer = torch.optim.AdamW(parameter_groups(self.scorer, settings), fused=True)
        objective = Objective(self.scorer, settings)
        self.wrapped, self.optimizer = self.accelerator.prepare(objective, optimizer)
        shares = math.ceil(len(train.examples) / settings.batch_size)
        batches = math.ceil(shares / self.accelerator.num_processes)
        self.updates = math.ceil(batches / settings.accumulate) * settings.epochs
        self.schedule = get_linear_schedule_with_warmup(
            optimizer, int(settings.warmup * self.updates), self.updates
        )
        self.progress = Progress()

    @property
    def metrics_path(self) -> Path:
        """Where the metrics lines are kept."""
        return self.out.with_name("metrics.jsonl")

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train until done or stopped.

        Args:
            should_stop: Asked after every update; True saves a resume point and leaves.

        Returns:
            True when training is complete, False when it was stopped.

        Raises:
            InputError: Losses, gradients or scores are no longer finite numbers.
        """
        if not self.progress.history:
            self.write_metrics()
        if self.progress.epoch == 0 and self.progress.batch == 0:
            torch.manual_seed(self.settings.seed + self.accelerator.process_index)
        while not self.progress.is_done:
            if not self._run_epoch(should_stop):
                self.save_state()
                if not self.out.exists():
                    self._save_best()
                return False
            self._finish_epoch()
            self.save_state()
        return True

    def _run_epoch(self, should_stop: Callable[[], bool]) -> bool:
        settings, at = self.settings, self.progress
        order = self._epoch_batches(at.epoch)
        self.wrapped.train()
        label = f"epoch {at.epoch + 1}/{settings.epochs}"
        for indices in progress(order[at.batch :], label, len(order) - at.batch):
            started = time.monotonic()
            is_update = (at.batch + 1) % settings.accumulate == 0 or at.batch + 1 == len(order)
            quiet = nullcontext() if is_update else self.accelerator.no_sync(self.wrapped)
            batch = self._batch(indices)
            with quiet:
                span_loss, crf_loss = self.wrapped(batch)
                loss = (span_loss + settings.crf_weight * crf_loss) / settings.accumulate
                self.accelerator.backward(loss)
            at.batch += 1
            at.add(
                batches=1.0,
                span_loss=float(span_loss.detach()),
                crf_loss=float(crf_loss.detach()),
                tokens=float(batch.attention_mask_bt.sum()),
            )
            if not math.isfinite(at.sums["span_loss"] + at.sums["crf_loss"]):
                raise self._diverged("the loss")
            if is_update:
                self._update(span_loss, crf_loss)
            at.add(seconds=time.monotonic() - started)
            if is_update:
                if any(gather_object([should_stop()])):
                    return False
                if settings.save_every and self.schedule.last_epoch % settings.save_every == 0:
                    self.save_state()
        return True

    def _update(self, span_loss: Tensor, crf_loss: Tensor) -> None:
        """Take a step along the gradients; the losses are those of its last batch."""
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.settings.clip)
        if not math.isfinite(float(norm)):
            raise self._diverged("the gradient")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        update = self.schedule.last_epoch
        if update % _LOG_UPDATES == 0:
            self.log(
                {
                    "kind": "step",
                    "epoch": self.progress.epoch + 1,
                    "update": update,
                    "span_loss": round(float(span_loss.detach()), 6),
                    "crf_loss": round(float(crf_loss.detach()), 6),
                    "gradient_norm": round(float(norm), 4),
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
            )

    def _epoch_batches(self, epoch: int) -> list[list[int]]:
        """This process's batches of one epoch, the same at every call."""
        rng = np.random.default_rng([self.settings.seed, epoch])
        lengths = [len(example) for example in self.train_corpus.examples]
        batches = length_batches(lengths, self.settings.batch_size, rng)
        processes = self.accelerator.num_processes
        # Every process needs as many batches; the first ones fill the last round up.
        short = -len(batches) % processes
        batches += batches[:short]
        return batches[self.accelerator.process_index :: processes]

    def _batch(self, indices: Sequence[int]) -> Batch:
        corpus, settings, at = self.train_corpus, self.settings, self.progress
        examples = [corpus.examples[i] for i in indices]
        pictures = [corpus.picture(example) for example in examples]
        rng = np.random.default_rng(
            [settings.seed, at.epoch, at.batch, self.accelerator.process_index]
        )
        hidden = rng.random(len(pictures)) < settings.image_drop
        shown = [None if hide else p for p, hide in zip(pictures, hidden.tolist(), strict=True)]
        batch = collate(examples, self.template.config.scales, corpus.pad_id, shown)
        return batch.to(self.accelerator.device)

    def _diverged(self, what: str) -> InputError:
        settings = self.settings
        best = f"; {self.out} keeps the best epoch so far" if self.progress.best_f1 >= 0 else ""
        return InputError(
            f"training diverged: {what} is no finite number in epoch "
            f"{self.progress.epoch + 1}, batch {self.progress.batch}; lower --lr (now "
            f"{settings.lr:g}) and --head-lr (now {settings.head_lr:g}), or --clip (now "
            f"{settings.clip:g}){best}",
            "training_diverged",
        )

    def _finish_epoch(self) -> None:
        at, settings = self.progress, self.settings
        sums, count = at.sums, max(at.sums.get("batches", 1.0), 1.0)
        seconds = max(sums.get("seconds", 0.0), 1e-9)
        line: dict[str, Any] = {
            "kind": "epoch",
            "epoch": at.epoch + 1,
            "span_loss": round(sums.get("span_loss", 0.0) / count, 6),
            "crf_loss": round(sums.get("crf_loss", 0.0) / count, 6),
            "train_seconds": round(seconds, 2),
            "tokens_per_s": round(sums.get("tokens", 0.0) / seconds),
        }
        started = time.monotonic()
        f1 = -1.0
        if self.accelerator.is_main_process:
            dev, decoder = self._score_dev()
            f1 = dev["joint"]
            line |= {"dev_f1": dev, "dev_seconds": round(time.monotonic() - started, 2)}
            line |= {"bias": decoder.bias, "weight": decoder.weight}
        f1 = float(broadcast_object_list([f1])[0])
        is_better = f1 > at.best_f1
        at.bad_epochs = 0 if is_better else at.bad_epochs + 1
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        is_tired = bool(settings.patience) and at.bad_epochs >= settings.patience
        at.is_done = at.epoch >= settings.epochs or is_tired
        line |= {"best": is_better, "stopped_early": is_tired and at.epoch < settings.epochs}
        self.log(line)
        if is_better:
            at.best_f1 = f1
            self._save_best(decoder if self.accelerator.is_main_process else None, line)

    def _score_dev(self) -> tuple[dict[str, float], DecoderSettings]:
        batch_size = self.settings.eval_batch_size
        predictions = predict(self.scorer, self.dev_corpus, batch_size=batch_size)
        # The last update of an epoch can spoil weights whose own loss was still finite.
        finite = [bool(torch.isfinite(weight).all()) for weight in self.scorer.parameters()]
        if not all([*finite, *(post.is_finite for post in predictions)]):
            raise self._diverged("a weight or a score of a dev post")
        gold = self.dev_corpus.gold
        decoder = make_decoder(self.scorer.model, self.template.decoder)
        joint, counts = tune_joint(predictions, gold, decoder)
        _, segmental = tune_segmental(predictions, gold, decoder)
        chain = decode(predictions, replace(decoder, settings=replace(joint, kind="linear-chain")))
        f1 = {
            "joint": counts.f1,
            "segmental": segmental.f1,
            "linear-chain": count_spans(gold, chain).f1,
        }
        return {name: round(value, 6) for name, value in f1.items()}, joint

    def _save_best(
        self, decoder: DecoderSettings | None = None, line: Mapping[str, Any] | None = None
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        bias = math.log(self.settings.entity_weight) if self.settings.loss == "ce" else 0.0
        checkpoint = replace(
            self.template,
            weights=self.scorer.model.state_dict(),
            # Before the first dev score: what the loss implies.
            decoder=decoder or DecoderSettings(kind="joint", bias=bias, weight=1.0),
            provenance={**self.template.provenance, "epoch": dict(line or {})},
        )
        save_checkpoint(self.out, checkpoint)

    def save_state(self) -> None:
        """Write the resume point, atomically."""
        generators = gather_object([_generator_states()])
        if not self.accelerator.is_main_process:
            return
        save_atomically(
            state_path(self.out),
            {
                "format": _STATE_FORMAT,
                "fingerprint": self.fingerprint,
                "processes": self.accelerator.num_processes,
                "model": self.scorer.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": {"last_epoch": self.schedule.last_epoch},
                "generators": generators,
                "progress": asdict(self.progress),
            },
        )

    def load_state(self) -> None:
        """Continue from the resume point.

        Raises:
            CheckpointError: There is none, or it belongs to another run.
        """
        state = read_plain(require_state(self.out))
        if state.get("format") != _STATE_FORMAT:
            raise CheckpointError(f"{state_path(self.out)} is no training state; delete it")
        for name, mine in (
            ("fingerprint", self.fingerprint),
            ("processes", self.accelerator.num_processes),
        ):
            if state[name] != mine:
                raise CheckpointError(
                    f"{state_path(self.out)} belongs to another run ({name} {state[name]!r}, now "
                    f"{mine!r}); start without --resume, or give the same data and settings"
                )
        self.scorer.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = int(state["schedule"]["last_epoch"])
        # The groups' rates came with the optimizer; the schedule only remembers them for display.
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.progress = Progress(**state["progress"])
        _restore_generators(state["generators"][self.accelerator.process_index])
        self.write_metrics()

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        self.progress.history.append(line)
        if self.accelerator.is_main_process:
            with self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def write_metrics(self) -> None:
        """Write the metrics file anew from the history: empty at the start of a run."""
        if self.accelerator.is_main_process:
            lines = "".join(json.dumps(line) + "\n" for line in self.progress.history)
            self.metrics_path.parent.mkdir(parents=True, exist_ok=True)
            self.metrics_path.write_text(lines, encoding="utf-8")


def require_state(out: Path) -> Path:
    """Path of a run's resume point.

    Raises:
        CheckpointError: There is none.
    """
    path = state_path(out)
    if not path.exists():
        raise CheckpointError(
            f"no resume point at {path}; start without --resume, or give the --out of the run that "
            "was interrupted"
        )
    return path


def state_path(out: Path) -> Path:
    """Where the resume point of a run is kept."""
    return out.with_name(f"{out.stem}.state.pt")


def _generator_states() -> dict[str, Any]:
    """States of torch's generators on every device."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _restore_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
