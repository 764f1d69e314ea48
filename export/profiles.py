"""Optimization profiles: one set of named extents, from which every input's shapes follow.

TensorRT takes a minimum, optimum and maximum for each input on its own and does not compare them: a
mask that ends at 128 steps beside ids that end at 256 builds, and fails in service. Here a shape is
made of symbols (B, T, S, N), each with one extent, so inputs cannot disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx

from amlr.errors import ExportError, InputError

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]
KINDS = ("min", "opt", "max")


@dataclass(frozen=True, slots=True)
class Extent:
    """Smallest, most usual and largest size of one dimension."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise InputError(
                f"extent must hold 1 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The traffic one engine serves.

    Attributes:
        posts: B, windows in a batch.
        tokens: T, steps of the longest window.
        units: S, most units of one window.
        pool: N, pictures held on the device.
        pictures: B of the image graph, new pictures encoded at once.
    """

    posts: Extent = Extent(1, 8, 32)
    tokens: Extent = Extent(8, 32, 128)
    units: Extent = Extent(1, 64, 768)
    pool: Extent = Extent(1, 64, 256)
    pictures: Extent = Extent(1, 1, 16)

    def split(self, batches: Sequence[int]) -> tuple["Profile", ...]:
        """One profile for each range of batch sizes, with its optimum at the range's end.

        Args:
            batches: Where the ranges of windows end, ascending; those of pictures end there too,
                the last of them where they end already.

        Raises:
            InputError: The batches do not ascend from 1 or more.

        Example:
            >>> [each.posts for each in Profile().split([1, 32])]
            [Extent(min=1, opt=1, max=1), Extent(min=2, opt=32, max=32)]
        """
        if not batches or any(low >= high for low, high in pairwise([0, *batches])):
            raise InputError(f"batches must ascend from 1 or more, got {list(batches)}")
        profiles: list[Profile] = []
        for low, high in pairwise([0, *batches]):
            most = min(high, self.pictures.max)
            pictures = profiles[-1].pictures if low >= most else Extent(low + 1, most, most)
            profiles.append(replace(self, posts=Extent(low + 1, high, high), pictures=pictures))
        return tuple(profiles)

    def symbols(self, graph: str) -> dict[str, Extent]:
        """Extents by the names of a graph's dynamic axes."""
        if graph == "image":
            return {"B": self.pictures}
        return {"B": self.posts, "T": self.tokens, "S": self.units, "N": self.pool}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, int]]) -> "Profile":
        """Rebuild from plain numbers."""
        return cls(**{name: Extent(**extent) for name, extent in values.items()})


Dims = Mapping[str, tuple[int | str, ...]]


def input_dims(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Each input's dimensions: numbers, or names of dynamic axes."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param
            for d in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants
    }


def shapes_for(graph: str, dims: Dims, profile: Profile) -> Shapes:
    """Shapes of every input of one graph.

    Args:
        graph: `text`, `image` or `fusion`.
        dims: From `input_dims`.
        profile: Extents; `fusion` slices windows of K steps, so T starts there.

    Raises:
        ExportError: An axis has no extent.
    """
    symbols = profile.symbols(graph)
    shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
    for name, sizes in dims.items():
        unknown = [d for d in sizes if isinstance(d, str) and d not in symbols]
        if unknown:
            raise ExportError(
                f"input {name!r} of graph {graph!r} has axes {unknown} with no extent"
            )
        low, usual, high = (
            tuple(getattr(symbols[d], kind) if isinstance(d, str) else d for d in sizes)
            for kind in KINDS
        )
        shapes[name] = (low, usual, high)
    return shapes
