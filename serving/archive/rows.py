"""One row of any input, and what is wrong with it."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from amlr.errors import InputError
from amlr.runtime.results import Post, Problem, problem
from amlr.serving.archive.locations import is_local, open_location


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Names of the columns; those that the input lacks are passed over, save `text`."""

    id: str = "id"
    text: str = "text"
    image: str = "image"
    image_bytes: str = "image_bytes"
    words: str = "words"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row.

    Attributes:
        number: Place in the whole input, from 0.
        id: As given, or None.
        image: Path or address, content, or None.
        error: Why the row cannot be tagged.
    """

    number: int
    id: Any = None
    text: str = ""
    image: str | bytes | None = None
    words: Any = None
    error: Problem | None = None


def bad_row(number: int, message: str, identity: Any = None) -> Row:
    """A row that is kept with its error."""
    return Row(number=number, id=identity, error={"code": "line_invalid", "message": message})


def make_row(number: int, values: Any, columns: Columns) -> Row:
    """Read a row's columns; whatever is wrong becomes the row's error."""
    if not isinstance(values, Mapping):
        return bad_row(number, f"row {number} must be an object with a {columns.text!r}")
    row = Row(number=number, id=values.get(columns.id))
    text = values.get(columns.text)
    if not isinstance(text, str):
        return bad_row(number, f"row {number} needs a string in {columns.text!r}", row.id)
    image = values.get(columns.image) or None
    content = values.get(columns.image_bytes) or None
    words = values.get(columns.words) or None
    try:
        if not isinstance(image, str | None):
            raise InputError(f"row {number}: {columns.image!r} must be a path", "line_invalid")
        if isinstance(content, str):
            content = base64.b64decode(content, validate=True)
        if isinstance(words, str):
            words = json.loads(words)
    except InputError as error:
        return replace(row, error=problem(error))
    except (binascii.Error, ValueError, RecursionError) as error:
        return bad_row(number, f"row {number}: words or picture cannot be read: {error}", row.id)
    return replace(row, text=text, image=content or image, words=words)


def make_post(row: Row, image_root: str | None, max_bytes: int) -> tuple[Post, Problem | None]:
    """The row's post; a picture that cannot be fetched is left out with a warning."""
    image = row.image
    if not isinstance(image, str):
        return Post(row.text, image, row.words), None
    if image_root and "://" not in image and not image.startswith("/"):
        image = f"{image_root.rstrip('/')}/{image}"
    if "://" not in image:
        return Post(row.text, image, row.words), None
    try:
        fs, path = open_location(image)
        if is_local(fs):
            return Post(row.text, path, row.words), None
        with fs.open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    # Every store fails in its own way, and whatever it is, the picture is what is missing.
    except Exception as error:
        reason = f"no picture from {image}: {type(error).__name__}"
        return Post(row.text, None, row.words), {"code": "image_missing", "message": reason}
    return Post(row.text, content, row.words), None
