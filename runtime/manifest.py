"""The bundle's `manifest.json` as dataclasses: read with every field checked, written by export."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Self, TypeVar

from amlr.errors import BundleError, InputError
from amlr.runtime.image import ImageLimits, ImageSpec
from amlr.runtime.text import TextSpec

SCHEMA = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
DECODER = "decoder.safetensors"
GOLDEN = "golden.safetensors"
REFERENCE = "reference.safetensors"
NONE_CLASS = "none"
DECODER_KINDS = ("joint", "segmental", "linear-chain")
_HEX64 = re.compile("[0-9a-f]{64}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size and hash of one file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Ids of the tokenizer's special tokens."""

    cls_id: int
    sep_id: int
    pad_id: int
    unk_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSettings:
    """How scores become entities; applied outside the graphs, so changing it rebuilds nothing.

    Attributes:
        kind: `joint`, `segmental` or `linear-chain`.
        bias: b, subtracted from every unit's log-odds.
        weight: w of the token head in the joint score.
        temperature: Divides scores before marginals are taken (confidence only).
        max_entity_words: Longest entity that emissions alone may form.
    """

    kind: str = "joint"
    bias: float = 0.0
    weight: float = 0.0
    temperature: float = 1.0
    max_entity_words: int = 10

    def __post_init__(self) -> None:
        if self.kind not in DECODER_KINDS:
            raise InputError(f"decoder kind must be one of {DECODER_KINDS}, got {self.kind!r}")
        if not math.isfinite(self.bias):
            raise InputError(f"decoder bias must be a finite number, got {self.bias!r}")
        if not self.temperature > 0 or not self.weight >= 0 or self.max_entity_words < 1:
            raise InputError("decoder needs temperature > 0, weight >= 0, max_entity_words >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One set of graphs in one precision.

    Attributes:
        precision: `fp32`, `fp16`, `bf16`, `int8`, ...
        provider: The one provider it is for, or None for all that read ONNX.
        graphs: Graph name (`text`, `text_packed`, `image`, `fusion`, ...) to file.
        compute: Arithmetic of a graph's float part where it is not that of its file: `bf16` runs
            float32 nodes in bfloat16, which only OpenVINO does.
        parity: What the export measured; `changed_entities` decides over `precision="auto"`.
        tolerance: Largest difference of raw logits from the golden ones, absolute, allowed at load.
    """

    precision: str
    provider: str | None = None
    graphs: dict[str, str]
    compute: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-3

    def has_image_of(self, other: "Variant") -> bool:
        """Whether both encode pictures alike."""
        graphs = (self.graphs.get("image"), self.compute.get("image"))
        return graphs == (other.graphs.get("image"), other.compute.get("image"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All of `manifest.json`; shape letters as in the design: D width, K scales, P regions."""

    name: str
    labels: tuple[str, ...]
    tags: tuple[str, ...]
    scales: int
    width: int
    regions: int
    heads: int
    head_width: int
    shape_embedding: bool
    text: TextSpec
    token_ids: TokenIds
    image: ImageSpec
    limits: ImageLimits
    decoder: DecoderSettings
    provenance: dict[str, Any]
    variants: dict[str, Variant]
    files: dict[str, FileEntry]
    engines: tuple[dict[str, Any], ...] = ()
    kernels: tuple[dict[str, Any], ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Unit classes in the order of the logits, `none` first."""
        return (NONE_CLASS, *self.labels)

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        values: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        values["classes"] = list(self.classes)
        values["text"] |= values.pop("token_ids")
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse and check a manifest.

        Raises:
            BundleError: No JSON, another schema, or a field that is missing or wrong.
        """
        values = parse_json_object(text, MANIFEST)
        if values.get("schema") != SCHEMA:
            raise BundleError(
                f"bundle has schema {values.get('schema')!r}, this amlr reads schema {SCHEMA}; "
                "export it again with this version, or install the version that wrote it"
            )
        try:
            manifest = cls._from_dict(values)
        except KeyError as error:
            raise BundleError(
                f"{MANIFEST} lacks {error.args[0]!r}; export the bundle again"
            ) from error
        # Our own dataclasses answer with InputError (a ValueError); wrong JSON types with the rest.
        except (TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{MANIFEST} is wrong: {error}; export the bundle again") from error
        manifest._check()
        return manifest

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        text = values["text"]
        return cls(
            name=_typed(values, "name", str),
            labels=_strings(values, "labels"),
            tags=_strings(values, "tags"),
            scales=_typed(values, "scales", int),
            width=_typed(values, "width", int),
            regions=_typed(values, "regions", int),
            heads=_typed(values, "heads", int),
            head_width=_typed(values, "head_width", int),
            shape_embedding=_typed(values, "shape_embedding", bool),
            text=TextSpec.from_dict(text),
            token_ids=TokenIds(
                **{name: _typed(text, name, int) for name in TokenIds.__dataclass_fields__}
            ),
            image=ImageSpec.from_dict(values["image"]),
            limits=ImageLimits.from_dict(values["limits"]),
            decoder=DecoderSettings(**_known(DecoderSettings, values["decoder"])),
            provenance=_typed(values, "provenance", dict),
            variants={
                str(name): Variant(**_known(Variant, variant))
                for name, variant in _typed(values, "variants", dict).items()
            },
            files={
                str(name): FileEntry(**_known(FileEntry, entry))
                for name, entry in _typed(values, "files", dict).items()
            },
            engines=tuple(values.get("engines", ())),
            kernels=tuple(values.get("kernels", ())),
        )

    def _check(self) -> None:
        if not self.labels or self.scales < 1 or self.width < 1 or self.regions < 1:
            raise BundleError(f"{MANIFEST} needs labels, and scales, width and regions above 0")
        if "fp32" not in self.variants:
            raise BundleError(f"{MANIFEST} has no fp32 variant; export the bundle again")
        if self.scales > self.text.overlap_tokens:
            raise BundleError(
                f"scales {self.scales} exceed the overlap of {self.text.overlap_tokens} tokens; "
                "units at a window's edge would be lost"
            )
        for name, entry in self.files.items():
            check_file_name(name)
            if not _HEX64.fullmatch(entry.sha256) or entry.bytes < 0:
                raise BundleError(f"{MANIFEST} has no valid sha256 and size for {name!r}")
        for variant in self.variants.values():
            for graph, name in variant.graphs.items():
                if name not in self.files:
                    raise BundleError(f"{MANIFEST} lists no file {name!r} for graph {graph!r}")


def check_file_name(name: str) -> None:
    """Refuse names that could leave the bundle's folder.

    Raises:
        BundleError: Absolute, with `..`, a drive, a backslash or a NUL.
    """
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or PureWindowsPath(name).drive
        or str(path) != name
        or ".." in path.parts
        or any(char in name for char in "\\\0")
    ):
        raise BundleError(
            f"{MANIFEST} names the file {name!r}; expected a path inside the bundle. "
            "Do not use this bundle unless you trust where it came from"
        )


def parse_json_object(text: str | bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BundleError: Not UTF-8, not JSON, or no object.
    """
    try:
        values = json.loads(text)
    # UnicodeDecodeError and JSONDecodeError are ValueErrors; deep nesting overflows the stack.
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is not JSON ({error}); the file is damaged") from error
    if not isinstance(values, dict):
        raise BundleError(f"{name} holds {type(values).__name__}, expected an object")
    return values


def _typed(values: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = values[name]
    # bool is an int to isinstance, but never a count.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name!r} is {value!r}, expected {kind.__name__}")
    return value


def _strings(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    items = _typed(values, name, list)
    if not all(isinstance(item, str) for item in items) or len(set(items)) != len(items):
        raise TypeError(f"{name!r} must be a list of different strings, got {items!r}")
    return tuple(items)


def _known(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys the dataclass has; newer minor additions are ignored."""
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}
