"""Exported graphs give the eager model's numbers, whatever the batch looks like."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from amlr.errors import ExportError
from amlr.export.fusion_graph import fold_pays
from amlr.export.graphs import GraphSpec, build_graphs
from amlr.export.to_onnx import WEIGHTS_FILE, trace, write_graphs
from amlr.runtime.units import scale_major_index
from tiny_model import IMAGE_SIZE, VOCABULARY, tiny_config, tiny_model

CASES = [
    ("bert", "mobilenet", {}),
    ("mpnet", "vit", {"shape_classes": 0}),
    ("bert", "vit", {"head_width": 8, "heads": 4, "scales": 3}),
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=range(len(CASES)), ids=lambda i: "-".join(CASES[i][:2]))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    text, image, options = CASES[request.param]
    model = tiny_model(tiny_config(text, image, **options))
    folder = tmp_path_factory.mktemp("graphs")
    files = write_graphs(build_graphs(model, image_size=IMAGE_SIZE), folder)
    options_ort = onnxruntime.SessionOptions()
    options_ort.intra_op_num_threads = 1
    sessions = {n: onnxruntime.InferenceSession(str(f), options_ort) for n, f in files.items()}
    return model, sessions, folder


class Batch:
    """Random padded posts and what the eager model says of them."""

    def __init__(self, model: Any, lengths: list[int], image_index: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        steps = max(lengths)
        self.steps, self.lengths, self.image_index = steps, lengths, image_index
        self.mask = (torch.arange(steps)[None] < torch.tensor(lengths)[:, None]).long()
        pad_id = model.text.encoder.config.pad_token_id
        self.ids = torch.randint(5, VOCABULARY, self.mask.shape)
        self.ids[self.mask == 0] = pad_id
        self.shapes = torch.randint(0, 9, self.mask.shape) if model.text.shapes else None
        self.pixels = torch.randn(max(image_index, default=-1) + 1 or 1, 3, IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad():
            out = model(self.ids, self.mask, self.pixels, torch.tensor(image_index), self.shapes)
            self.hidden = model.text(self.ids, self.mask, self.shapes).numpy()
        self.logits, self.emissions = out.unit_logits.numpy(), out.emissions.numpy()

    def feeds(self, **arrays: Any) -> dict[str, np.ndarray]:
        """Inputs of a text graph, with shape ids where the model has them."""
        feeds = {name: np.asarray(array) for name, array in arrays.items()}
        return {name: array for name, array in feeds.items() if array.dtype != object}

    def units(self, scales: int) -> list[list[tuple[int, int]]]:
        """Per post every unit (start, scale) without padding steps."""
        return [
            [(s, k) for k in range(1, scales + 1) for s in range(n - k + 1)] for n in self.lengths
        ]


@pytest.mark.parametrize(
    ("lengths", "image_index"),
    [([9], [0]), ([9], [-1]), ([7, 23, 12], [1, -1, 0]), ([31, 30], [0, 0]), ([8, 8], [-1, -1])],
)
def test_graphs_equal_eager(exported: Any, lengths: list[int], image_index: list[int]) -> None:
    model, sessions, _ = exported
    batch = Batch(model, lengths, image_index, seed=len(lengths))
    real = batch.mask.numpy().astype(bool)
    scales = model.config.scales

    hidden = sessions["text"].run(
        None,
        batch.feeds(input_ids=batch.ids, attention_mask=batch.mask, shape_ids=batch.shapes),
    )[0]
    np.testing.assert_allclose(hidden[real], batch.hidden[real], atol=TOLERANCE)

    regions = sessions["image"].run(None, {"pixel_values": batch.pixels.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(regions, model.image(batch.pixels).numpy(), atol=1e-4)

    units = batch.units(scales)
    most = max(map(len, units))
    index = np.zeros((len(units), most), np.int64)
    for row, listed in zip(index, units, strict=True):
        starts, sizes = np.array(listed).T
        row[: len(listed)] = scale_major_index(starts, sizes, batch.steps)
    logits, emissions = sessions["fusion"].run(
        None,
        {
            "hidden_btd": hidden,
            "unit_index_bs": index,
            "pool_npd": regions,
            "slot_b": np.array(image_index),
        },
    )
    np.testing.assert_allclose(emissions[real], batch.emissions[real], atol=TOLERANCE)
    for b, listed in enumerate(units):
        expected = batch.logits[b, index[b, : len(listed)]]
        np.testing.assert_allclose(logits[b, : len(listed)], expected, atol=TOLERANCE)
    check_packed(batch, sessions, regions, scales)


def check_packed(batch: Batch, sessions: Any, regions: np.ndarray, scales: int) -> None:
    real = batch.mask.numpy().astype(bool)
    flat = np.flatnonzero(real)
    hidden = sessions["text_packed"].run(
        None,
        batch.feeds(
            input_ids=batch.ids.numpy()[real],
            position_ids=flat % batch.steps,
            pad_index=(np.cumsum(real) - 1).reshape(real.shape),
            unpad_index=flat,
            attention_mask=batch.mask,
            shape_ids=batch.shapes if batch.shapes is None else batch.shapes.numpy()[real],
        ),
    )[0]
    np.testing.assert_allclose(hidden, batch.hidden[real], atol=TOLERANCE)

    first_row = np.cumsum([0, *batch.lengths])
    listed = [(b, s, k) for b, us in enumerate(batch.units(scales)) for s, k in us]
    listed.sort(key=lambda unit: unit[2])
    posts = [b for b, i in enumerate(batch.image_index) if i >= 0]
    attend = [[m for m, unit in enumerate(listed) if unit[0] == b] for b in posts] or [[0]]
    rows = [m for group in attend for m in group]
    slots = max(map(len, attend))
    pad = np.zeros((len(attend), slots), np.int64)
    unpad, position = [], 0
    for i, group in enumerate(attend):
        pad[i, : len(group)] = np.arange(position, position + len(group))
        unpad += [i * slots + j for j in range(len(group))]
        position += len(group)
    context = np.full(len(listed), len(rows), np.int64)
    if posts:
        context[rows] = np.arange(len(rows))
    feeds = {
        "hidden_nd": hidden,
        **{
            f"rows_{k}": np.array(
                [first_row[b] + s + np.arange(k) for b, s, size in listed if size == k]
            ).reshape(-1, k)
            for k in range(1, scales + 1)
        },
        "attend_rows_r": np.array(rows),
        "attend_pad_is": pad,
        "pool_npd": regions,
        "slot_i": np.array([batch.image_index[b] for b in posts] or [0]),
    }
    attention = sessions["attention"].run(None, feeds)[0]
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)
    closed = {n: a for n, a in feeds.items() if n == "hidden_nd" or n.startswith("rows_")}
    feeds |= {"attend_unpad_r": np.array(unpad), "context_index_m": context}
    logits, emissions = sessions["fusion_packed"].run(None, feeds)
    np.testing.assert_allclose(emissions, batch.emissions[real], atol=TOLERANCE)
    expected = [batch.logits[b, scale_major_index(s, k, batch.steps)] for b, s, k in listed]
    np.testing.assert_allclose(logits, np.array(expected), atol=TOLERANCE)
    if not posts:
        logits, emissions = sessions["fusion_closed"].run(None, closed)
        np.testing.assert_allclose(emissions, batch.emissions[real], atol=TOLERANCE)
        np.testing.assert_allclose(logits, np.array(expected), atol=TOLERANCE)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("centre", [False, True])
def test_fold_and_centring_change_nothing(fold: bool, centre: bool, tmp_path: Path) -> None:
    model = tiny_model()
    specs = {s.name: s for s in build_graphs(model, image_size=IMAGE_SIZE)}
    other = {
        s.name: s for s in build_graphs(model, image_size=IMAGE_SIZE, fold=fold, centre=centre)
    }
    for name in ("fusion", "fusion_packed"):
        inputs = tuple(specs[name].inputs.values())
        # A large common component is what centring is for; results must not notice it.
        shifted = tuple(x + 3.0 if x.dim() == 3 and x.is_floating_point() else x for x in inputs)
        with torch.no_grad():
            for a, b in zip(
                specs[name].module(*shifted), other[name].module(*shifted), strict=True
            ):
                torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


def test_fold_rule_follows_head_width() -> None:
    assert fold_pays(768, 8, 768, 197)
    assert not fold_pays(768, 12, 64, 197)


def test_graphs_share_their_weights(exported: Any) -> None:
    model, _, folder = exported
    stored = (folder / WEIGHTS_FILE).stat().st_size
    once = sum(p.numel() * 4 for p in model.parameters())
    # Folded maps replace the attention's own; nothing else may be there twice.
    assert stored < 1.35 * once


def test_mask_is_finite(exported: Any) -> None:
    model, sessions, _ = exported
    ids = np.full((1, 8), 5)
    shapes = {"shape_ids": np.zeros_like(ids)} if model.text.shapes else {}
    hidden = sessions["text"].run(
        None, {"input_ids": ids, "attention_mask": np.zeros_like(ids), **shapes}
    )[0]
    assert np.isfinite(hidden).all()


def test_dropped_input_is_an_error() -> None:
    class Ignores(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x * 2

    spec = GraphSpec(
        name="broken",
        module=Ignores(),
        inputs={"x": torch.ones(2), "y": torch.ones(2)},
        outputs=("z",),
        axes={},
    )
    with pytest.raises(ExportError, match="lost its inputs"):
        trace(spec)


def test_weights_that_the_exporter_leaves_outside_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = build_graphs(tiny_model(tiny_config()), image_size=IMAGE_SIZE)[:2]
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
    files = write_graphs(specs, inside)
    export = torch.onnx.export

    def export_large(module: Any, inputs: Any, path: str, **options: Any) -> None:
        """As the exporter does above 2 GB: each large tensor in a file of its own."""
        export(module, inputs, path, **options)
        onnx.save_model(
            onnx.load_model(path),
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=False,
            size_threshold=1024,
        )
        assert len(list(Path(path).parent.iterdir())) > 3
        monkeypatch.setattr(onnx.shape_inference, "infer_shapes", None)

    monkeypatch.setattr(torch.onnx, "export", export_large)
    assert write_graphs(specs, outside).keys() == files.keys()
    names = sorted(path.name for path in outside.iterdir())
    assert names == sorted(path.name for path in inside.iterdir())
    for name in names:
        assert (outside / name).read_bytes() == (inside / name).read_bytes(), name


def test_graphs_pass_the_checker(exported: Any) -> None:
    *_, folder = exported
    for path in folder.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
