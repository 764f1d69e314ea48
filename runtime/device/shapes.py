"""Which shape a batch runs in: buckets, and the optimization profile that takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from amlr.runtime.engine_record import EngineRecord, Shape
from amlr.runtime.manifest import Manifest

# Steps of the bucket grid. Tensor cores like multiples of eight; coarser steps of units cost
# little, because the fusion is a small part of the work, and keep the number of graphs low.
TOKEN_STEP, UNIT_STEP = 8, 32
# Rows of padding cost as much as others, graphs and their memory cost too.
POST_STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """A fixed shape: windows, steps and units of one run."""

    posts: int
    tokens: int
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest sizes the engines take, over all profiles; D, P, C, Y of the outputs are not here.

    Attributes:
        posts: Windows in one run.
        tokens: Steps; `least_tokens` is the smallest.
        units: Units of one window.
        pool: Pictures on the device.
        pictures: Pictures encoded at once.
        usual: Windows and steps of the shapes that are run before the first caller comes.
        planned: Steps and units of planned buckets, ascending.
    """

    posts: int
    least_tokens: int
    tokens: int
    units: int
    pool: int
    pictures: int
    usual: tuple[tuple[int, int], ...]
    planned: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_profiles(cls, record: EngineRecord) -> "Limits":
        """Read them from the profiles of a bundle's engines."""
        text, fusion = record.graphs["text"].shapes, record.graphs["fusion"].shapes
        image = record.graphs["image"].shapes
        return cls(
            posts=max(p["input_ids"][2][0] for p in text),
            least_tokens=min(p["input_ids"][0][1] for p in text),
            tokens=max(p["input_ids"][2][1] for p in text),
            units=max(p["unit_index_bs"][2][1] for p in fusion),
            pool=max(p["pool_npd"][2][0] for p in fusion),
            pictures=max(p["pixel_values"][2][0] for p in image),
            usual=tuple((p["input_ids"][1][0], p["input_ids"][1][1]) for p in text),
            planned=record.buckets,
        )

    def bucket(self, posts: int, tokens: int, units: int) -> Bucket:
        """The smallest planned bucket that holds a batch, else the smallest grid point."""
        rows = min(round_posts(posts), self.posts)
        for steps, most in self.planned:
            if tokens <= steps <= self.tokens and units <= most <= self.units:
                return Bucket(posts=rows, tokens=max(steps, self.least_tokens), units=most)
        return Bucket(
            posts=rows,
            tokens=min(_up(max(tokens, self.least_tokens), TOKEN_STEP), self.tokens),
            units=min(_up(max(units, 1), UNIT_STEP), self.units),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes that do not change: D, P, 1+C, Y, K and the side of a picture."""

    width: int
    regions: int
    classes: int
    tags: int
    scales: int
    image: int
    shapes: bool
    pad_id: int

    @classmethod
    def of(cls, manifest: Manifest) -> "Sizes":
        """Read them from a manifest."""
        return cls(
            width=manifest.width,
            regions=manifest.regions,
            classes=len(manifest.classes),
            tags=len(manifest.tags),
            scales=manifest.scales,
            image=manifest.image.size,
            shapes=manifest.shape_embedding,
            pad_id=manifest.token_ids.pad_id,
        )

    def inputs(self, bucket: Bucket, slots: int) -> dict[str, Shape]:
        """Input shapes of `text` and `fusion` in a bucket, with a pool of `slots` pictures."""
        rows = (bucket.posts, bucket.tokens)
        shapes: dict[str, Shape] = {"input_ids": rows, "attention_mask": rows}
        if self.shapes:
            shapes["shape_ids"] = rows
        return shapes | {
            "hidden_btd": (*rows, self.width),
            "unit_index_bs": (bucket.posts, bucket.units),
            "pool_npd": (slots, self.regions, self.width),
            "slot_b": (bucket.posts,),
        }

    def uploads(self, bucket: Bucket) -> dict[str, Shape]:
        """Shapes of the inputs that go up with every run; all of them int64."""
        resident = ("hidden_btd", "pool_npd")
        return {n: shape for n, shape in self.inputs(bucket, 0).items() if n not in resident}

    def outputs(self, bucket: Bucket) -> dict[str, Shape]:
        """Output shapes of `fusion`."""
        return {
            "unit_logits_bsc": (bucket.posts, bucket.units, self.classes),
            "emissions_bty": (bucket.posts, bucket.tokens, self.tags),
        }


def profile_index(profiles: Sequence[dict[str, tuple[Shape, Shape, Shape]]], **sizes: Shape) -> int:
    """The first optimization profile whose ranges hold all given input shapes; -1 for none."""
    for index, shapes in enumerate(profiles):
        if all(
            low <= size <= high
            for name, shape in sizes.items()
            for low, size, high in zip(shapes[name][0], shape, shapes[name][2], strict=True)
        ):
            return index
    return -1


def round_posts(posts: int) -> int:
    """The number of rows that so many posts, or pictures, are run with."""
    return next((rows for rows in POST_STEPS if rows >= posts), posts)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
