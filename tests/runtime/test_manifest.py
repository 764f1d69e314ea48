import json
from dataclasses import replace
from typing import Any

import pytest

from amlr.errors import BundleError, InputError
from amlr.runtime.image import ImageLimits, ImageSpec
from amlr.runtime.manifest import DecoderSettings, FileEntry, Manifest, TokenIds, Variant
from amlr.runtime.providers.registry import admitted_variants
from amlr.runtime.text import TextSpec

FILE = FileEntry(sha256="0" * 64, bytes=3)
MANIFEST = Manifest(
    name="small",
    labels=("PER", "LOC"),
    tags=("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    scales=6,
    width=8,
    regions=4,
    heads=2,
    head_width=8,
    shape_embedding=True,
    text=TextSpec(),
    token_ids=TokenIds(cls_id=2, sep_id=3, pad_id=0, unk_id=1),
    image=ImageSpec(),
    limits=ImageLimits(),
    decoder=DecoderSettings(bias=2.3, weight=0.5),
    provenance={"created": "now"},
    variants={"fp32": Variant(precision="fp32", graphs={"text": "onnx/fp32/text.onnx"})},
    files={"onnx/fp32/text.onnx": FILE},
    engines=({"library": "tensorrt"},),
)


def changed(**values: Any) -> str:
    return json.dumps(json.loads(MANIFEST.to_json()) | values)


def test_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert json.loads(MANIFEST.to_json())["classes"] == ["none", "PER", "LOC"]
    assert Manifest.from_json(changed(added_later=1)) == MANIFEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\x80\x04",
        b"\xff\xfe",
        "[" * 100_000,
        changed(schema=2),
        changed(schema=None),
        changed(labels="PER"),
        changed(labels=[]),
        changed(labels=["PER", "PER"]),
        changed(scales="6"),
        changed(scales=True),
        changed(scales=0),
        changed(scales=60),
        changed(text=None),
        changed(text={}),
        changed(image={"size": -1}),
        changed(image={"mean": "x"}),
        changed(decoder={"kind": "magic"}),
        changed(decoder={"bias": "x"}),
        changed(decoder={"temperature": 0}),
        changed(variants={}),
        changed(variants={"fp32": {"precision": "fp32", "graphs": {"text": "absent"}}}),
        changed(variants={"fp32": {"precision": "fp32"}}),
        changed(files={"a": {"sha256": "xyz", "bytes": 1}}),
        changed(files={"a": {"sha256": "0" * 64, "bytes": -1}}),
        changed(files=[]),
    ],
)
def test_a_wrong_manifest_is_one_clear_error(text: str | bytes) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "C:/x", "a\\b", "a//b", "./a", "", "a/", "a\0b", ".."],
)
def test_file_names_stay_inside(name: str) -> None:
    with pytest.raises(BundleError, match="path inside the bundle"):
        Manifest.from_json(changed(files={name: {"sha256": "0" * 64, "bytes": 1}}))


def test_decoder_settings_are_checked() -> None:
    for wrong in ({"kind": "x"}, {"weight": -1}, {"temperature": 0}, {"bias": float("nan")}):
        with pytest.raises(InputError):
            DecoderSettings(**wrong)


def test_auto_takes_a_variant_other_than_fp32_only_within_a_budget_above_zero() -> None:
    graphs = {"text": "onnx/fp32/text.onnx"}
    unproved = Variant(precision="bf16", graphs=graphs)
    verified = Variant(
        precision="int8", graphs=graphs, parity={"changed_entities": 0, "entities": 500}
    )
    lossy = Variant(
        precision="int4", graphs=graphs, parity={"changed_entities": 4, "entities": 500}
    )
    gpu = replace(verified, precision="fp16", provider="onnxruntime-cuda")
    family = replace(verified, precision="int8", provider="onnxruntime")
    variants = {
        "fp32": MANIFEST.variants["fp32"],
        "bf16": unproved,
        "int8": verified,
        "int4": lossy,
        "gpu": gpu,
        "family": family,
    }
    manifest = replace(MANIFEST, variants=variants)

    def names(*options: Any) -> list[str]:
        return [name for name, _ in admitted_variants(manifest, *options)]

    # A record of unchanged entities on some posts is no promise for others.
    for provider in ("onnxruntime-cpu", "onnxruntime-cuda", "openvino"):
        assert names(provider, "auto") == ["fp32"]
    assert names("onnxruntime-cpu", "auto", 0.001) == ["int8", "family", "fp32"]
    assert names("onnxruntime-cuda", "auto", 0.001) == ["int8", "gpu", "family", "fp32"]
    assert names("openvino", "auto", 0.001) == ["int8", "fp32"]
    assert names("openvino", "auto", 0.01) == ["int8", "int4", "fp32"]
    assert names("openvino", "exact") == names("openvino", "fp32") == ["fp32"]
    assert names("openvino", "bf16") == ["bf16"]
    assert names("openvino", "fp16") == []
