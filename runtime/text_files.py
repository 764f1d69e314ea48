"""Text files as people have them: UTF-8, marked UTF-16 and UTF-32, any line ends.

Other encodings cannot be told apart: they are refused by name, never guessed.
"""

import codecs
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from amlr.errors import InputError

# Enough of a file to tell its form.
START_BYTES = 1 << 16
_BLOCK = 1 << 16
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """How a file writes text.

    Attributes:
        encoding: `utf-8`, `utf-8-sig` (with a byte order mark), `utf-16` or `utf-32`.
        has_cr_ends: Whether lines end with a carriage return alone, as on the oldest Macs.
    """

    encoding: str = "utf-8"
    has_cr_ends: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the bytes are UTF-8 with ordinary line ends already, but for a mark."""
        return self.encoding.startswith("utf-8") and not self.has_cr_ends


def text_form(start: bytes, name: str) -> TextForm:
    """Tell a file's form from its beginning.

    Args:
        start: The first `START_BYTES` bytes, or all where there are fewer.
        name: Of the file, for the error.

    Raises:
        InputError: The bytes look like UTF-16 or UTF-32 without a byte order mark.
    """
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 4 * start.count(0) > len(start):
        raise InputError(
            f"{name} looks like UTF-16 without a byte order mark; convert it first: "
            f"iconv -f UTF-16LE -t UTF-8",
            "data_bad",
        )
    text = start.decode(encoding, "ignore")
    # A last one may be the first half of \r\n.
    return TextForm(encoding=encoding, has_cr_ends="\n" not in text and "\r" in text[:-1])


def read_text(path: Path, expected: str) -> str:
    """Read a whole file.

    Args:
        path: The file.
        expected: What it should be, for the error.

    Returns:
        The text without a byte order mark. Carriage returns are as in the file, unless lines end
        with them alone; then they are line feeds.

    Raises:
        InputError: The file cannot be read, or is not text of a known form; one line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give {expected}", "data_missing"
        ) from error
    form = text_form(content[:START_BYTES], str(path))
    try:
        text = content.decode(form.encoding)
    except UnicodeDecodeError as error:
        raise not_utf8(str(path), error) from error
    return text.replace("\r", "\n") if "\n" not in text else text


def not_utf8(name: str, error: UnicodeDecodeError) -> InputError:
    """One line on a file of an unknown encoding."""
    found = error.object[error.start : error.end].hex(" ")
    line = error.object.count(b"\n", 0, error.start) + 1
    return InputError(
        f"{name} is not {error.encoding.upper()} (bytes {found} in line {line}); convert it "
        "first, for example: iconv -f WINDOWS-1252 -t UTF-8",
        "data_bad",
    )


def is_json_array(start: str) -> bool:
    """Whether a text begins as a JSON array does; a post is an object."""
    return start.lstrip().startswith("[")


def json_array(name: str) -> InputError:
    """One line on posts that are elements of one array."""
    return InputError(
        f"{name} holds a JSON array, expected one JSON object a line; convert it first, "
        "for example: jq -c '.[]'"
    )


class AsUtf8(io.RawIOBase):
    """A file of another form as UTF-8 with line feeds; positions count the bytes it gives.

    Half a surrogate pair comes out as bytes that are not UTF-8, so that only its line is wrong.
    """

    def __init__(self, file: IO[bytes], form: TextForm) -> None:
        """Read `file`, which is closed with this one."""
        self._file, self._form = file, form
        self._restart()

    def _restart(self) -> None:
        self._file.seek(0)
        self._decoder = codecs.getincrementaldecoder(self._form.encoding)("surrogatepass")
        self._ready, self._position, self._is_at_end = b"", 0, False

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; going back reads from the beginning."""
        return True

    def tell(self) -> int:
        """Bytes given so far."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; 0 at the end.

        Raises:
            UnicodeDecodeError: The file ends within a character.
        """
        while not self._ready and not self._is_at_end:
            block = self._file.read(_BLOCK)
            self._is_at_end = not block
            self._ready = self._converted(block)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        self._position += count
        return count

    def _converted(self, block: bytes) -> bytes:
        if not self._form.encoding.startswith("utf-8"):
            text = self._decoder.decode(block, final=not block)
            block = text.encode("utf-8", "surrogatepass")
        return block.replace(b"\r", b"\n") if self._form.has_cr_ends else block

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position counted from the beginning."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the beginning")
        if offset < self._position:
            self._restart()
        while self._position < offset and self.read(min(offset - self._position, _BLOCK)):
            pass
        return self._position

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        super().close()
