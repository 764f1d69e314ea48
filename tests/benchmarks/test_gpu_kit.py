"""The kit: recipes make the same bytes again, and what cannot is noticed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlr.benchmarks.gpu.recipe import (
    FOLDED,
    FileTensor,
    Piece,
    Pool,
    Recipe,
    describe,
    write_file,
)
from amlr.errors import BundleError
from amlr.export.samples import sample_posts
from amlr.training.seeded import SeededTensor


def _pool(heads: int = 2) -> Pool:
    names = {"query": (8, 6), "key": (8, 6), "value": (8, 6), "output": (6, 8)}
    seeded = [
        SeededTensor(name=f"cross.{name}.weight", shape=shape, std=0.1)
        for name, shape in names.items()
    ]
    seeded.append(SeededTensor(name="long", shape=(4, 12), std=0.1))
    seeded.append(SeededTensor(name="patches", shape=(4, 3, 2, 2), std=0.1))
    return Pool(seed=3, seeded=seeded, heads=heads)


def _file(tensors: list[tuple[str, np.ndarray]]) -> tuple[bytes, list[FileTensor]]:
    content, listed = b"", []
    for name, value in tensors:
        content += bytes(-len(content) % 64)
        listed.append(
            FileTensor(name=name, offset=len(content), dtype=str(value.dtype), shape=value.shape)
        )
        content += np.ascontiguousarray(value).tobytes()
    return content, listed


def test_a_recipe_makes_every_kind_of_piece_again(tmp_path: Path) -> None:
    pool = _pool()
    query, key, value = (pool[f"cross.{name}.weight"] for name in ("query", "key", "value"))
    rng = np.random.default_rng(0)
    long, patches = pool["long"], pool["patches"]
    trained = rng.standard_normal((5, 4)).astype(np.float32)
    rounded = trained.astype(np.float16).astype(np.float32)
    content, tensors = _file(
        [
            ("as it is", query),
            ("transposed", np.ascontiguousarray(key.T)),
            ("merged", np.concatenate([query.T, key.T, value.T], axis=1)),
            ("merged half", np.concatenate([query, key], axis=0).astype(np.float16)),
            # As a convolution's windows: a block as it is, blocks of a longer matrix, zeros.
            (
                "windows",
                np.concatenate(
                    [np.eye(4), *np.split(long.T, 3, axis=0), np.zeros((4, 4))], axis=1
                ).astype(np.float16),
            ),
            ("patches", patches.reshape(4, -1).T),
            ("folded", pool[FOLDED[0]]),
            ("folded half", pool[FOLDED[1]].T.astype(np.float16)),
            ("trained", trained),
            ("rounded", rounded),
            ("rounded half", rounded.astype(np.float16)),
            ("integers", np.arange(7)),
        ]
    )
    pieces = describe(content, tensors, pool)
    # Only what no seed decides travels, and each of it once: two tensors, the integers, and the
    # identity and the zeros of the windows.
    assert len(pool.carried) == 5
    digest = hashlib.sha256(content).hexdigest()
    recipe = Recipe(pool=pool, files={"onnx/w.bin": (len(content), digest, pieces)})
    recipe.save(tmp_path / "part")
    Recipe.load(tmp_path / "part").write(tmp_path / "made")
    assert (tmp_path / "made" / "onnx" / "w.bin").read_bytes() == content


def test_folded_maps_are_the_exports_own(tmp_path: Path) -> None:
    import torch

    from amlr.export.fusion_graph import FoldedCross
    from amlr.training.model import AmlrModel
    from amlr.training.random_checkpoint import random_weights, seeded_tensors
    from tiny_model import tiny_config

    model = AmlrModel(tiny_config())
    model.load_state_dict(random_weights(model, 9))
    pool = Pool(seed=9, seeded=seeded_tensors(model), heads=model.config.heads)
    folded = FoldedCross(model.cross, centre=True)
    assert folded.mean_out is not None
    with torch.no_grad():
        expected = [folded.into.weight, folded.out.weight, folded.mean_out.weight]
    for name, value in zip(FOLDED, expected, strict=True):
        assert np.array_equal(pool[name], value.numpy()), name


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
        expected = exact.half().float() if exact.dim() > 1 else exact
        assert torch.equal(value, expected), key
    # Zeroed rows are rows of words that no post has: the answers are those of rounding alone.
    rounded = {k: v.half().float() if v.dim() > 1 else v for k, v in before.items()}
    models = [load_reference(bundle), load_reference(bundle)]
    models[0].load_state_dict(rounded)
    models[1].load_state_dict(checkpoint.weights)
    answers = [Engine(bundle, EagerProvider(model)).raw(posts) for model in models]
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one.unit_logits, other.unit_logits)


def test_a_file_that_comes_out_different_is_refused(tmp_path: Path) -> None:
    pool = _pool()
    name = "cross.query.weight"
    piece = Piece(offset=0, dtype="float32", sources=(name,))
    wrong = hashlib.sha256(b"another").hexdigest()
    with pytest.raises(BundleError, match="fill the kit"):
        write_file(tmp_path / "w.bin", pool[name].nbytes, [piece], pool, wrong)


@given(
    seed=st.integers(0, 2**63),
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    std=st.floats(1e-3, 1.0),
    mean=st.sampled_from([0.0, 1.0]),
)
def test_seeded_values_come_from_the_generators_raw_words(
    seed: int, shape: list[int], std: float, mean: float
) -> None:
    import math
    import zlib

    tensor = SeededTensor(name="any", shape=tuple(shape), std=std, mean=mean)
    values = tensor.values(seed)
    assert SeededTensor.from_dict(tensor.to_dict()) == tensor
    # The same, written out with Python's integers and `random_raw`.
    exponent = 13 - math.ceil(math.log2(std * math.sqrt(3)))
    half = round(std * math.sqrt(3) * 2**exponent)
    bits = np.random.Philox(key=np.array([seed, zlib.crc32(b"any")], np.uint64))
    words = [int(w) for w in np.atleast_1d(bits.random_raw(-(-values.size // 4)))]
    for place in range(values.size):
        raw = words[place // 4] >> 16 * (place % 4) & 0xFFFF
        exact = mean + ((raw * 2 * half >> 16) - half) / 2**exponent
        assert float(values.reshape(-1)[place]) == exact


def test_seeded_values_have_the_wanted_spread() -> None:
    values = SeededTensor(name="big", shape=(400, 500), std=0.02).values(0)
    assert abs(float(values.std()) / 0.02 - 1) < 0.01
    assert abs(float(values.mean())) < 1e-3
    other = SeededTensor(name="other", shape=(400, 500), std=0.02).values(0)
    assert abs(float(np.corrcoef(values.ravel(), other.ravel())[0, 1])) < 0.01


def test_a_tensor_longer_than_one_draw_has_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = SeededTensor(name="long", shape=(1003,), std=0.1)
    whole = tensor.values(1)
    monkeypatch.setattr("amlr.training.seeded._WORDS", 16)
    assert np.array_equal(tensor.values(1), whole)
