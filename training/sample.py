"""A small generated dataset: posts with names whose type only the picture decides.

"Jordan", "Paris" or "Apple" may be a person, a place, an organisation or a thing; the sentence
often does not say, the drawn picture does. Other names are clear from the text alone, and may
disagree with the picture. Dev uses names, drawings and one drawing style per kind that training
never sees. Nothing is copied from anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amlr.training.conll import LabelledPost, write_conll
from amlr.training.sample_pictures import KINDS, draw_picture


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
    posts, kinds = [], []
    names = _AMBIGUOUS[split]
    for number in range(count):
        # Names and kinds in turn: every name is seen as every kind, so its own guess is worthless.
        name, kind = names[number % len(names)], KINDS[(number // len(names) + number) % len(KINDS)]
        chance = rng.random()
        image_id: str | None = f"{split}_{number:04d}"
        if chance < 0.80:
            template = _pick(_OPEN, rng)
        elif chance < 0.90:
            template = _pick(_TOLD[kind], rng)
            # What the words already say needs no picture, and must work without one.
            image_id = image_id if rng.random() < 0.5 else None
        else:
            template, kind = _pick(_PLAIN, rng), _pick(KINDS, rng)
            image_id = image_id if rng.random() < 0.7 else None
        posts.append(_fill(template, split, name, kind, image_id, rng))
        kinds.append(kind if image_id else "")
    return posts, kinds


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _fill(
    template: str,
    split: str,
    name: str,
    kind: str,
    image_id: str | None,
    rng: np.random.Generator,
) -> LabelledPost:
    """A post: `{a}` becomes the name with the picture's kind, `{PER}` and the like other names."""
    words: list[str] = []
    tags: list[str] = []
    for part in template.split():
        slot = part.strip("{}")
        if part == "{a}":
            label = kind
            entity = [_pick(_AMBIGUOUS_SECOND, rng), name] if rng.random() < 0.15 else [name]
        elif part == "{PER}":
            label, entity = slot, [_pick(_GIVEN[split], rng), _pick(_FAMILY[split], rng)]
        elif slot in _CLEAR_ENDS:
            label = slot
            entity = [_pick(_STEMS[split], rng), *_pick(_CLEAR_ENDS[slot], rng).split()]
        else:
            number = int(rng.integers(10_000, 99_999))
            word = part.replace("{user}", f"user{number}").replace("{tag}", _pick(_TAGS, rng))
            words.append(word.replace("{link}", f"s{number}x"))
            tags.append("O")
            continue
        words += entity
        tags += [f"B-{label}", *[f"I-{label}"] * (len(entity) - 1)]
    return LabelledPost(words=tuple(words), tags=tuple(tags), image_id=image_id)


def write_sample(folder: Path, *, train: int = 480, dev: int = 160) -> Path:
    """Write the dataset as CoNLL files and pictures; the same bytes every time.

    Args:
        folder: Takes `train.txt`, `valid.txt` and `images/`.
        train: Posts to train on.
        dev: Posts with other names and drawings.

    Returns:
        The folder.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate((("train", train), ("dev", dev))):
        rng = np.random.default_rng([0, number])
        posts, kinds = make_posts(split, count, rng)
        for post, kind in zip(posts, kinds, strict=True):
            if kind:
                picture = draw_picture(kind, rng, is_dev=split == "dev")
                picture.save(images / f"{post.image_id}.jpg", quality=int(rng.integers(70, 95)))
        write_conll(folder / ("train.txt" if split == "train" else "valid.txt"), posts)
    return folder
