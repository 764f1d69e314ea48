"""JSON lines in and out: posts as they arrive, answers in the same order."""

import codecs
import itertools
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from amlr.errors import InputError
from amlr.runtime.engine import Engine
from amlr.runtime.results import Alternative, Post, Problem, Result, problem
from amlr.runtime.text_files import is_json_array, json_array, text_form

_END = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One input line: its id, and the post or what is wrong with the line."""

    id: Any
    post: Post | None = None
    error: Problem | None = None


def parse_line(number: int, line: bytes, image_root: Path | None) -> Line:
    """Read `{"id", "text", "image", "words"}`; only `text` is needed.

    Args:
        number: Line number from 1, the id of a line that gives none.
        line: One line, UTF-8.
        image_root: Folder that relative picture paths start from.
    """
    identity: Any = number
    try:
        try:
            values = json.loads(line)
        # Bad UTF-8 and bad JSON are ValueErrors; deep nesting overflows the stack.
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} is not JSON: {error}", "line_invalid") from error
        if not isinstance(values, dict):
            raise InputError(
                f'line {number} must be an object like {{"text": "..."}}', "line_invalid"
            )
        identity = values.get("id", number)
        if not isinstance(values.get("text"), str):
            raise InputError(f"line {number} needs a string 'text'", "line_invalid")
        image = values.get("image") or None
        if not isinstance(image, str | None):
            raise InputError(f"line {number}: 'image' must be a path", "line_invalid")
        path = None if image is None else (image_root or Path()) / image
        return Line(id=identity, post=Post(values["text"], path, values.get("words")))
    except InputError as error:
        return Line(id=identity, error=problem(error))


def read_chunks(stream: IO[bytes], size: int, image_root: Path | None) -> Iterator[list[Line]]:
    """Lines that have arrived, at least one and at most `size` at a time.

    A thread reads ahead, so that a slow writer gets each answer at once and a fast one full
    batches. Blank lines are passed over.

    Raises:
        InputError: The stream holds a JSON array, or text that is not UTF-8 from its first line on.
    """
    ahead: queue.Queue[Any] = queue.Queue(maxsize=2 * size)

    def read() -> None:
        try:
            for number, line in enumerate(_lines(stream), start=1):
                if line.strip():
                    ahead.put(parse_line(number, line, image_root))
            ahead.put(_END)
        except Exception as error:  # handed over to the thread that waits
            ahead.put(error)

    threading.Thread(target=read, name="amlr-stdin", daemon=True).start()
    is_open = True
    while is_open:
        lines, is_open = _arrived(ahead, size)
        if lines:
            yield lines


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a stream that cannot be read twice, without a byte order mark."""
    lines = iter(stream)
    start = next(lines, b"")
    form = text_form(start, "stdin")
    if not form.encoding.startswith("utf-8"):
        name = form.encoding.upper()
        raise InputError(f"stdin is {name}, expected UTF-8; add: iconv -f {name} -t UTF-8 |")
    start = start.removeprefix(codecs.BOM_UTF8)
    # Where lines end with a carriage return alone, all of them arrive as one.
    first = start.split(b"\r") if form.has_cr_ends else [start]
    is_begun = False
    for line in itertools.chain(first, lines):
        if not is_begun and is_json_array(line.decode(errors="ignore")):
            raise json_array("stdin")
        is_begun = is_begun or bool(line.strip())
        yield line


def _arrived(ahead: "queue.Queue[Any]", size: int) -> tuple[list[Line], bool]:
    """Wait for a line, take what else is there; whether more can follow."""
    lines: list[Line] = []
    item = ahead.get()
    while isinstance(item, Line):
        lines.append(item)
        if len(lines) == size or ahead.empty():
            return lines, True
        item = ahead.get()
    if isinstance(item, Exception):
        raise item
    return lines, False


def tag_lines(engine: Engine, chunks: Iterator[list[Line]]) -> Iterator[tuple[Line, Result]]:
    """Answer each line; a bad one gets a result that holds its error."""
    for lines in chunks:
        results = iter(engine.tag_batch([line.post for line in lines if line.post is not None]))
        for line in lines:
            if line.post is None:
                yield (
                    line,
                    Result(provider=engine.provider, precision=engine.precision, error=line.error),
                )
            else:
                yield line, next(results)


def answer(line: Line, result: Result, alternatives: Sequence[Alternative] | None = None) -> str:
    """One output line; not ASCII-only unless the text holds half a surrogate pair."""
    values = result.to_dict()
    kept = ("entities", "image_used", "certified", "warnings", "error")
    row = {"id": line.id} | {name: values[name] for name in kept}
    if alternatives is not None:
        row["alternatives"] = [alternative.to_dict() for alternative in alternatives]
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return text
