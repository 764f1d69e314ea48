"""What the eager model needs, inside the bundle, so that a proof needs nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from amlr.errors import BundleError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import REFERENCE
from amlr.training.config import AmlrConfig
from amlr.training.model import AmlrModel


def write_reference(path: Path, config: AmlrConfig, weights: Mapping[str, Tensor]) -> None:
    """Write the eager model's configuration and weights as one safetensors file."""
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in weights.items()}
    save_file(tensors, path, metadata={"config": json.dumps(config.to_dict())})


def load_reference(bundle: Bundle) -> AmlrModel:
    """Rebuild the eager model of a bundle.

    Raises:
        BundleError: The bundle was written without it, or it is damaged.
    """
    if REFERENCE not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.path} holds no {REFERENCE} (exported with --no-reference), so there is no "
            "eager model to compare with; export it again from the checkpoint"
        )
    path = bundle.verified(REFERENCE)
    try:
        with safe_open(path, framework="pt") as file:
            config = AmlrConfig.from_dict(json.loads(file.metadata()["config"]))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}; export the bundle again") from error
    model = AmlrModel(config)
    model.load_state_dict(weights)
    return model.to(torch.float32).eval()
