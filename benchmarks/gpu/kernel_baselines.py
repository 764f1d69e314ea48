"""What the CUDA decoders are compared with: NumPy on one core, pytorch-crf on host and GPU."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.decoders import TAGS
from amlr.kernels import tag_marginals, viterbi_decode
from amlr.kernels.validation import Chain, check_chain


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedChain:
    """A batch of random linear chains.

    Attributes:
        emissions_bty: (B, T, Y) float32 or float16.
        lengths_b: (B,) steps of each.
        parameters: start_y, transitions_yy and end_y, float32.
    """

    emissions_bty: npt.NDArray[np.floating[Any]]
    lengths_b: npt.NDArray[np.int64]
    parameters: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def draw(
        cls, batch: int, steps: int, *, half: bool = False, lengths: int | None = None
    ) -> "TimedChain":
        """Random scores; all sequences are `lengths` long, by default full."""
        rng = np.random.default_rng(0)
        tags = len(TAGS)
        emissions = rng.standard_normal((batch, steps, tags)).astype(np.float32)
        return cls(
            emissions_bty=emissions.astype(np.float16) if half else emissions,
            lengths_b=np.full(batch, steps if lengths is None else lengths, np.int64),
            parameters={
                "start_y": rng.standard_normal(tags).astype(np.float32),
                "transitions_yy": rng.standard_normal((tags, tags)).astype(np.float32),
                "end_y": rng.standard_normal(tags).astype(np.float32),
            },
        )

    def checked(self) -> Chain:
        """As the host functions check it."""
        return check_chain(self.emissions_bty, self.lengths_b, **self.parameters, allowed_yy=None)

    def decode(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """NumPy's tags and scores."""
        parameters: dict[str, Any] = dict(self.parameters)
        return viterbi_decode(self.emissions_bty, self.lengths_b, **parameters)

    def confidence(self, path_bt: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
        """NumPy's probability of each tag of a path (B, T), in float64; 0 past the end."""
        exact = {name: part.astype(np.float64) for name, part in self.parameters.items()}
        marginals = tag_marginals(self.emissions_bty.astype(np.float64), self.lengths_b, **exact)
        picked = np.take_along_axis(marginals, np.maximum(path_bt, 0)[:, :, None], 2)[:, :, 0]
        return np.where(path_bt >= 0, picked, 0.0)

    def describe(self, kernel: str) -> dict[str, Any]:
        """Its sizes, for a row."""
        batch, steps, tags = self.emissions_bty.shape
        dtype = str(self.emissions_bty.dtype)
        return {"kernel": kernel, "batch": batch, "steps": steps, "tags": tags, "dtype": dtype}


def host_us(call: Callable[[], object], repeats: int = 3) -> float:
    """Least wall-clock microseconds of a call after one to warm up; ends after about a second."""
    call()
    least = float("inf")
    stop = time.perf_counter() + 1.0
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        least = min(least, end - start)
        if end > stop:
            break
    return round(1e6 * least, 2)


def baseline_rows(
    batches: tuple[int, ...], steps: int, most: int, *, on_gpu: bool
) -> list[dict[str, Any]]:
    """NumPy and pytorch-crf on the linear chains that the kernels decoded.

    Args:
        batches: B of each row.
        steps: T.
        most: Largest B for pytorch-crf.
        on_gpu: Also run pytorch-crf on the GPU.
    """
    rows: list[dict[str, Any]] = []
    for batch in batches:
        chain = TimedChain.draw(batch, steps)
        row = chain.describe("linear_viterbi")
        rows.append(row | {"decoder": "numpy", "numpy_us": host_us(chain.decode)})
        if batch > most:
            continue
        for device in ("cpu", "cuda") if on_gpu else ("cpu",):
            row = chain.describe("linear_viterbi") | {"decoder": f"pytorch-crf, {device}"}
            try:
                rows.append(row | _pytorch_crf(chain, device))
            except (ImportError, RuntimeError) as error:
                rows.append(row | {"not_run": f"{type(error).__name__}: {error}"})
    return rows


def _pytorch_crf(chain: TimedChain, device: str) -> dict[str, Any]:
    import torch
    from torchcrf import CRF

    crf = CRF(len(TAGS), batch_first=True)
    targets = (crf.start_transitions, crf.transitions, crf.end_transitions)
    with torch.no_grad():
        for parameter, values in zip(targets, chain.parameters.values(), strict=True):
            parameter.copy_(torch.from_numpy(values))
    crf = crf.to(device)
    emissions = torch.from_numpy(np.asarray(chain.emissions_bty)).to(device)

    def decode() -> Any:
        with torch.no_grad():
            return crf.decode(emissions)

    same = bool(np.array_equal(np.array(decode()), chain.decode()[0]))
    # The paths come back as lists, so a call ends with the device's work done.
    return {"crf_us": host_us(decode, repeats=2), "equal": same}
