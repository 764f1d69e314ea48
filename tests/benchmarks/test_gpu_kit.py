"""The kit: bundles come out of it as they went in, and travel light."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from amlr.benchmarks.gpu.kit import add_part, is_unpacked, kit_command, unpack_part
from amlr.export.samples import sample_posts


def test_a_part_gives_its_bundle_again(tiny_plan: Path, tmp_path: Path) -> None:
    part, plan = tmp_path / "kit" / "small", tmp_path / "small.plan"
    add_part(part, tiny_plan, sample_posts(4, images=1))
    assert not is_unpacked(part, plan)
    for _ in range(2):  # the second time over what is there
        unpack_part(part, plan)
        assert is_unpacked(part, plan)
        files = {path.relative_to(plan): path for path in plan.rglob("*") if path.is_file()}
        assert {name: path.read_bytes() for name, path in files.items()} == {
            name: (tiny_plan / name).read_bytes() for name in files
        }
        assert len(files) == sum(path.is_file() for path in tiny_plan.rglob("*"))
        (plan / "manifest.json").write_bytes(b"{}")
        assert not is_unpacked(part, plan)


def test_only_random_bundles_become_the_paper_part(tiny_plan: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        kit_command, ["--out", str(tmp_path / "kit"), "--paper", str(tiny_plan)]
    )
    assert result.exit_code == 2
    assert "has trained weights; make one with: amlr-train --random" in result.output


def test_a_shrunk_model_still_reads_its_posts(tiny_plan: Path) -> None:
    import torch

    from amlr.benchmarks.gpu.kit import shrunk_checkpoint
    from amlr.export.eager import EagerProvider, load_reference
    from amlr.runtime import Engine
    from amlr.runtime.bundle import Bundle

    bundle = Bundle.open(tiny_plan)
    posts = sample_posts(8, images=1)
    checkpoint = shrunk_checkpoint(tiny_plan, posts)
    before = load_reference(bundle).state_dict()
    name = "text.encoder.embeddings.word_embeddings.weight"
    is_zero = (checkpoint.weights[name] == 0).all(dim=1)
    assert 0 < int(is_zero.sum()) < len(is_zero)
    for key, value in checkpoint.weights.items():
        exact = before[key]
        if key == name:
            value, exact = value[~is_zero], exact[~is_zero]
        expected = exact.to(torch.float8_e5m2).float() if exact.dim() > 1 else exact
        assert torch.equal(value, expected), key
    # Zeroed rows are rows of words that no post has: the answers are those of rounding alone.
    rounded = {k: v.to(torch.float8_e5m2).float() if v.dim() > 1 else v for k, v in before.items()}
    models = [load_reference(bundle), load_reference(bundle)]
    models[0].load_state_dict(rounded)
    models[1].load_state_dict(checkpoint.weights)
    answers = [Engine(bundle, EagerProvider(model)).raw(posts) for model in models]
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one.unit_logits, other.unit_logits)
