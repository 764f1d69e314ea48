"""The kit: bundles come out of it as they went in, and travel light."""

from pathlib import Path

import torch
from click.testing import CliRunner

from amlr.benchmarks.gpu.kit import (
    add_part,
    is_unpacked,
    kit_command,
    shrunk_checkpoint,
    unpack_part,
)
from amlr.export.eager import load_reference
from amlr.export.options import ExportOptions
from amlr.export.pipeline import export_checkpoint
from amlr.export.samples import sample_posts
from amlr.runtime.bundle import Bundle
from amlr.runtime.image import ImageSpec
from amlr.runtime.results import Post
from amlr.training.checkpoint import save_checkpoint
from amlr.training.random_checkpoint import random_checkpoint
from tiny import TOKEN_IDS, tiny_tokenizer
from tiny_model import IMAGE_SIZE, tiny_config


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


def test_a_random_bundle_that_holds_its_eager_model_is_packed(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(
        tiny_config(), tiny_tokenizer().to_str(), TOKEN_IDS, image=ImageSpec(size=IMAGE_SIZE)
    )
    save_checkpoint(tmp_path / "x.pt", checkpoint)
    for keep_reference, code in ((False, 2), (True, 0)):
        plan = tmp_path / f"{keep_reference}.plan"
        export_checkpoint(tmp_path / "x.pt", plan, ExportOptions(keep_reference=keep_reference))
        result = CliRunner().invoke(
            kit_command, ["--out", str(tmp_path / "kit"), "--paper", str(plan)]
        )
        assert result.exit_code == code, result.output
        assert ("holds no eager model" in result.output) == (code == 2)
    assert is_unpacked(tmp_path / "kit" / "paper", plan)


def test_a_shrunk_model_has_values_that_float16_holds_and_tokens_of_its_posts(
    tiny_plan: Path,
) -> None:
    bundle = Bundle.open(tiny_plan)
    before, posts = load_reference(bundle).state_dict(), [Post("Paris"), Post("Jordan in Paris")]
    after = shrunk_checkpoint(tiny_plan, posts).weights
    assert before.keys() == after.keys()
    tokens = {
        int(token)
        for encoded in bundle.encoder.encode([(post.text, None) for post in posts])
        for window in encoded.windows
        for token in window.input_ids_t
    }
    (words,) = (name for name in before if name.endswith("word_embeddings.weight"))
    is_unused = torch.tensor([token not in tokens for token in range(len(before[words]))])
    assert is_unused.any()
    before[words][is_unused] = 0.0
    for name, value in after.items():
        if value.dim() > 1 and value.is_floating_point():
            assert torch.equal(value, before[name].to(torch.float8_e5m2).float()), name
            assert torch.equal(value, value.half().float()), name
        else:
            assert torch.equal(value, before[name]), name
