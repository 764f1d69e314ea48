"""A small generated dataset: posts with names whose type only the picture decides.

"Jordan", "Paris" or "Apple" may be a person, a place, an organisation or a thing; the sentence
often does not say, the drawn picture does. Other names are clear from the text alone, and may
disagree with the picture. Dev uses names, drawings and one drawing style per kind that training
never sees. Nothing is copied from anywhere.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amlr.training.conll import LabelledPost, write_conll
from amlr.training.sample_pictures import KINDS, draw_picture
from amlr.whole import write_whole

_VERSION = 2
_STAMP = "sample.json"


def _words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


_AMBIGUOUS = {
    "train": _words("""
        Jordan Lincoln Amazon Chelsea Madison Phoenix Dallas Charlotte Sydney Victoria
        Georgia Virginia Orlando Florence Brooklyn Savannah Montana Houston Jackson Milan Geneva
        Mercedes Tesla Ford Chase Hershey Hilton Jaguar Galaxy Oracle Delta Orange Mercury Cadillac
        Corona Aurora Dakota Kingston Nelson Santiago Regina Bentley Marina Eden Cairo Lourdes
        Austin Carolina Vienna Atlas"""),
    "dev": _words("""
        Paris Apple Washington Adelaide Denver Sofia Disney Puma Shell Saturn Valencia
        Verona
        Lexus Hudson Melbourne Camden Alexandria Wendy Dell Blackberry Nokia Trenton Preston
        Ferrari Sierra"""),
}
_AMBIGUOUS_SECOND = ("Grand", "Royal", "New", "Blue", "Golden", "Old", "North", "Saint")

_GIVEN = {
    "train": _words("Anna Peter Maria Thomas Lucy Kofi Elena Rahul Grace Diego Hannah Omar Julia"),
    "dev": _words("Nadia Viktor Clara Samuel Ingrid Pablo"),
}
_FAMILY = {
    "train": _words("Weber Okafor Silva Novak Tanaka Murphy Rossi Larsen Haddad Fischer Costa"),
    "dev": _words("Lindqvist Moreau Castillo Brandt Petrov Adeyemi"),
}
_STEMS = {
    "train": _words("Oak River Maple Harbor Summit Falcon Willow Stone Silver Cedar Eagle Amber"),
    "dev": _words("Birch Meadow Raven Copper Juniper Granite"),
}
_CLEAR_ENDS = {
    "LOC": _words("Street|Park|Lake|Bridge|National Park|Airport|Island|Valley", "|"),
    "ORG": _words("University|Bank|Airlines|FC|Records|Foods Inc|Hospital|Times", "|"),
    "OTHER": _words("Festival|Cup|Awards|Marathon|Prize|Open 2016|Day Parade", "|"),
}

# {a}: the name the picture decides. {PER} ...: names clear by themselves.
_OPEN = (
    "{a} looks amazing today",
    "cannot believe this is {a} !",
    "so happy to finally see {a} 😍",
    "RT @{user} : {a} never gets old",
    "best picture of {a} I have ever taken #{tag}",
    "who else loves {a} ?",
    "this is why I love {a} http://t.co/{link}",
    "{a} , ten years ago and now",
    "say hello to {a} everyone",
    "{a} again ... no words",
    "I could look at {a} all day",
    "thinking about {a} this morning #{tag}",
    "a little bit of {a} for your Monday",
    "{PER} just showed me {a} and wow",
    "my favourite shot : {a} , thanks {PER}",
    "{a} photographed by {PER} for the {ORG}",
    "found {a} on the way to {LOC}",
    "{a} after the {OTHER} 🎉",
    "{ORG} posted this one of {a}",
    "{a} and the story behind it , via @{user}",
    "#{tag} {a} from yesterday",
    "everyone at {ORG} is talking about {a}",
)
_TOLD = {
    "PER": ("my sister {a} turned 21 today", "{a} says she is sorry", "dinner with {a} and {PER}"),
    "LOC": ("just landed in {a} with {PER}", "three days in {a} , send tips", "rain in {a} again"),
    "ORG": ("{a} shares fell after the report", "{a} hired 200 engineers", "{a} is now hiring"),
    "OTHER": ("I bought a used {a} on sale", "charging my new {a}", "unboxing the {a} tonight"),
}
_PLAIN = (
    "{PER} will speak at {ORG} tomorrow",
    "walking from {LOC} to {LOC} with {PER}",
    "the {OTHER} starts at {LOC} tonight",
    "{ORG} wins the {OTHER} !",
    "no signal at {LOC} :(",
    "congrats {PER} on the {OTHER} #{tag}",
    "good morning everyone , coffee first ☕",
    "this is the best song ever #{tag}",
)
_TAGS = _words("love tbt monday photo weekend mood nofilter")


@dataclass(frozen=True, slots=True)
class _Writer:
    split: str
    rng: np.random.Generator

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def ambiguous(self, name: str) -> list[str]:
        if self.rng.random() < 0.15:
            return [self.pick(_AMBIGUOUS_SECOND), name]
        return [name]

    def clear(self, kind: str) -> list[str]:
        if kind == "PER":
            return [self.pick(_GIVEN[self.split]), self.pick(_FAMILY[self.split])]
        return [self.pick(_STEMS[self.split]), *self.pick(_CLEAR_ENDS[kind]).split()]

    def filler(self, word: str) -> str:
        number = int(self.rng.integers(10_000, 99_999))
        word = word.replace("{user}", f"user{number}").replace("{tag}", self.pick(_TAGS))
        return word.replace("{link}", f"s{number}x")

    def fill(self, template: str, name: str, kind: str, image_id: str | None) -> LabelledPost:
        words: list[str] = []
        tags: list[str] = []
        for part in template.split():
            slot = part.strip("{}")
            if part == "{a}" or (part.startswith("{") and slot in KINDS):
                entity = self.ambiguous(name) if part == "{a}" else self.clear(slot)
                label = kind if part == "{a}" else slot
                words += entity
                tags += [f"B-{label}", *[f"I-{label}"] * (len(entity) - 1)]
            else:
                words.append(self.filler(part))
                tags.append("O")
        return LabelledPost(words=tuple(words), tags=tuple(tags), image_id=image_id)


def make_posts(
    split: str, count: int, rng: np.random.Generator
) -> tuple[list[LabelledPost], list[str]]:
    """Generate posts of one split.

    Args:
        split: `train` or `dev`; they share no name.
        count: Number of posts.
        rng: Decides everything.

    Returns:
        Posts, and the kind of picture of each ("" for a post without one).
    """
    writer = _Writer(split, rng)
    posts, kinds = [], []
    for number in range(count):
        # Names and kinds in turn: every name is seen as every kind, so its own guess is worthless.
        name = _AMBIGUOUS[split][number % len(_AMBIGUOUS[split])]
        kind = KINDS[(number // len(_AMBIGUOUS[split]) + number) % len(KINDS)]
        chance = rng.random()
        image_id: str | None = f"{split}_{number:04d}"
        if chance < 0.80:
            template = writer.pick(_OPEN)
        elif chance < 0.90:
            template = writer.pick(_TOLD[kind])
            # What the words already say needs no picture, and must work without one.
            image_id = image_id if rng.random() < 0.5 else None
        else:
            template, kind = writer.pick(_PLAIN), writer.pick(KINDS)
            image_id = image_id if rng.random() < 0.7 else None
        posts.append(writer.fill(template, name, kind, image_id))
        kinds.append(kind if image_id else "")
    return posts, kinds


def write_sample(folder: Path, *, seed: int = 0, train: int = 480, dev: int = 160) -> Path:
    """Write the dataset as CoNLL files and pictures; an intact earlier copy is kept.

    Args:
        folder: Takes `train.txt`, `valid.txt` and `images/`.
        seed: Decides posts and drawings.
        train: Posts to train on.
        dev: Posts with other names and drawings.

    Returns:
        The folder.
    """
    wanted = {"version": _VERSION, "seed": seed, "train": train, "dev": dev}
    stamp = folder / _STAMP
    try:
        about = json.loads(stamp.read_text(encoding="utf-8"))
        if about.pop("sha256") == _digest(folder) and about == wanted:
            return folder
    except (OSError, ValueError, KeyError, AttributeError):
        pass
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    for number, (split, count) in enumerate((("train", train), ("dev", dev))):
        rng = np.random.default_rng([seed, number])
        posts, kinds = make_posts(split, count, rng)
        for post, kind in zip(posts, kinds, strict=True):
            if kind:
                picture = draw_picture(kind, rng, is_dev=split == "dev")
                picture.save(images / f"{post.image_id}.jpg", quality=int(rng.integers(70, 95)))
        write_conll(folder / ("train.txt" if split == "train" else "valid.txt"), posts)
    # Last and atomically: a half-written folder has no stamp.
    write_whole(stamp, json.dumps({**wanted, "sha256": _digest(folder)}))
    return folder


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [
        folder / "train.txt",
        folder / "valid.txt",
        *sorted((folder / "images").iterdir()),
    ]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
