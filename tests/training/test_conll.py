"""The CoNLL reader and its traps."""

from pathlib import Path

import pytest

from amlr.errors import InputError
from amlr.training.conll import (
    ImageFolder,
    LabelledPost,
    labels_of,
    match_labels,
    read_conll,
    read_ids,
    write_conll,
)


def _read(folder: Path, content: str) -> list[LabelledPost]:
    path = folder / "posts.txt"
    path.write_bytes(content.encode("utf-8"))
    return read_conll(path)


def test_reads_posts_and_image_ids(tmp_path: Path) -> None:
    posts = _read(tmp_path, "IMGID:7_a\nAda\tB-PER\nhere\tO\n\nIMGID:8\nParis\tB-LOC")
    assert [post.image_id for post in posts] == ["7_a", "8"]
    assert posts[0].text == "Ada here"
    assert posts[0].word_spans_n2.tolist() == [[0, 3], [4, 8]]
    assert posts[1].entities == [(0, 1, "LOC")]


def test_tokens_may_be_white_space(tmp_path: Path) -> None:
    (post,) = _read(tmp_path, "a\tO\n\u00a0\tO\nb\u2028c\tB-ORG\n")
    assert post.words == ("a", "\u00a0", "b\u2028c")
    for (start, end), word in zip(post.word_spans_n2.tolist(), post.words, strict=True):
        assert post.text[start:end] == word


def test_windows_line_ends_byte_order_mark_and_tab_only_separators(tmp_path: Path) -> None:
    posts = _read(tmp_path, "\ufeffa\tO\r\n\t\r\nb\tO\r\n\r\n\r\n")
    assert [post.words for post in posts] == [("a",), ("b",)]
    assert posts[0].tags == ("O",)


@pytest.mark.parametrize(
    ("content", "part"),
    [("a O\n", "posts.txt:1"), ("a\tO\nb\tS-PER\n", "posts.txt:2"), ("\n\n", "no posts")],
)
def test_bad_lines_are_named(tmp_path: Path, content: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        _read(tmp_path, content)


def test_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_conll(tmp_path / "absent.txt")


def test_written_posts_read_back(tmp_path: Path) -> None:
    posts = [
        LabelledPost(words=("New", "York"), tags=("B-LOC", "I-LOC"), image_id="x"),
        LabelledPost(words=("ok",), tags=("O",)),
    ]
    write_conll(tmp_path / "out.txt", posts)
    assert read_conll(tmp_path / "out.txt") == posts


def test_labels_keep_the_usual_order_and_match_by_class() -> None:
    posts = [
        LabelledPost(words=("a", "b", "c"), tags=("B-MISC", "B-PER", "B-food")),
    ]
    assert labels_of(posts) == ("PER", "MISC", "food")
    assert match_labels(("PER", "MISC"), ("PER", "OTHER")) == {"PER": "PER", "MISC": "OTHER"}
    assert match_labels(("food",), ("PER",)) == {"food": "food"}


def test_pictures_are_found_and_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    folder = ImageFolder(root=tmp_path, broken=frozenset({"c"}))
    found = [folder.find(name) for name in ("a", "b", "c", "d", None, "../a")]
    assert [path.name if path else None for path in found] == ["a.jpg", "b.png", *[None] * 4]
    folder.mark_unreadable("a", "truncated")
    assert folder.report() == {
        "found": 1,
        "none": 1,
        "missing": 2,
        "listed": 1,
        "unreadable": 1,
        "unreadable_ids": ["a"],
    }


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        ImageFolder(root=tmp_path / "absent")


CONLL = "IMGID:7\nZoë\tB-PER\nhere\tO\n\nIMGID:8\nParis\tB-LOC\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_encoding_and_line_end_gives_the_same_posts(
    tmp_path: Path, encoding: str, end: str
) -> None:
    path = tmp_path / "posts.txt"
    path.write_bytes(CONLL.replace("\n", end).encode(encoding))
    posts = read_conll(path)
    assert [post.words for post in posts] == [("Zoë", "here"), ("Paris",)]
    assert [post.tags for post in posts] == [("B-PER", "O"), ("B-LOC",)]
    assert [post.image_id for post in posts] == ["7", "8"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("Zoë\tB-PER\n".encode("latin-1"), "posts.txt is not UTF-8"),
        ("a\tO\n".encode("utf-16-be"), "UTF-16 without"),
        (b"a\tO\rb\tO\nc\tO\n", "posts.txt:1: found a carriage return"),
    ],
)
def test_unknown_encodings_and_mixed_line_ends_are_named(
    tmp_path: Path, content: bytes, part: str
) -> None:
    (tmp_path / "posts.txt").write_bytes(content)
    with pytest.raises(InputError, match=part) as caught:
        read_conll(tmp_path / "posts.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ids_carry_no_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "broken.txt"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(f"12_3{end} 45{end}{end}".encode(encoding))
        assert read_ids(path) == {"12_3", "45"}
    path.write_bytes(b"\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_ids(path)


def test_suffixes_of_pictures_may_be_in_capitals(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.Jpeg", "c.png", "C.PNG", "d.TIF", "e.jpg", "e.JPG", "v1.Beta.Webp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "f.JPG").mkdir()
    folder = ImageFolder(root=tmp_path)
    expected = {
        "a": "a.JPG", "a.jpg": "a.JPG", "a.JPG": "a.JPG", "b": "b.Jpeg", "c": "c.png", "C": "C.PNG",
        "d": "d.TIF", "e": "e.jpg", "v1.Beta": "v1.Beta.Webp", "A": None, "f": None, "v1": None,
        "v1.beta": None,
    }  # fmt: skip
    found = {name: folder.find(name) for name in expected}
    assert {name: path and path.name for name, path in found.items()} == expected


def test_marks_of_joined_files_are_no_part_of_ids(tmp_path: Path) -> None:
    posts = _read(tmp_path, "\ufeffIMGID:1\na\tO\n\n\ufeffIMGID:2\nb\tO\n")
    assert [post.image_id for post in posts] == ["1", "2"]
    (tmp_path / "ids.txt").write_text("\ufeff1\n\ufeff2\n", encoding="utf-8")
    assert read_ids(tmp_path / "ids.txt") == {"1", "2"}
