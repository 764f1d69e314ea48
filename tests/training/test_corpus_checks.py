"""Corpora that can be read but not trained on, and what is said of odd ones."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from amlr.errors import CheckpointError, InputError
from amlr.training.cli import train_command
from amlr.training.conll import LabelledPost, iob1_note, read_corpora, write_conll
from amlr.training.eval_cli import eval_command
from amlr.training.score import write_tags
from amlr.training.train import require_state
from log_lines import log_lines

SPANS = [[(0, 2, "PER"), (3, 4, "LOC")], [(1, 3, "ORG")], [(0, 1, "PER")], []]


def corpus(name: str, spans: list[list[tuple[int, int, str]]] = SPANS) -> list[LabelledPost]:
    return [
        LabelledPost(
            words=tuple(f"{name}{number}w{word}" for word in range(4)),
            tags=tuple(write_tags(found, 4)),
        )
        for number, found in enumerate(spans)
    ]


def as_iob1(post: LabelledPost) -> LabelledPost:
    """The same entities; `B-` only where two of one type touch."""
    tags = list(post.tags)
    for number, tag in enumerate(tags):
        before = tags[number - 1][2:] if number else ""
        if tag.startswith("B-") and before != tag[2:]:
            tags[number] = f"I-{tag[2:]}"
    return LabelledPost(words=post.words, tags=tuple(tags))


def written(folder: Path, train: list[LabelledPost], dev: list[LabelledPost]) -> tuple[Path, Path]:
    paths = folder / "train.txt", folder / "valid.txt"
    for path, posts in zip(paths, (train, dev), strict=True):
        write_conll(path, posts)
    return paths


def test_ordinary_corpora_need_no_word(tmp_path: Path) -> None:
    train, dev = corpus("a"), corpus("b")
    with log_lines("amlr.training") as lines:
        assert read_corpora(*written(tmp_path, train, dev)) == (train, dev)
    assert lines == []


def test_nothing_to_learn_is_one_line(tmp_path: Path) -> None:
    empty = corpus("a", [[], []])
    train, _ = written(tmp_path, empty, corpus("b"))
    with pytest.raises(InputError, match=r"train\.txt holds no entities") as caught:
        read_corpora(train, tmp_path / "valid.txt")
    assert "\n" not in str(caught.value)
    out = tmp_path / "best.pt"
    # Encoders are looked at later: nothing is loaded for a corpus that is no use.
    arguments = ["--data", tmp_path, "--out", out, "--text-encoder", "x", "--image-encoder", "x"]
    result = CliRunner().invoke(train_command, [str(argument) for argument in arguments])
    assert (result.exit_code, result.stderr) == (2, f"Error: {caught.value}\n")


def test_a_dev_file_without_entities_is_said(tmp_path: Path) -> None:
    with log_lines("amlr.training") as lines:
        read_corpora(*written(tmp_path, corpus("a"), corpus("b", [[]])))
    assert len(lines) == 1
    assert "valid.txt holds no entities" in lines[0]


@pytest.mark.parametrize(("shared", "warned"), [(0, False), (1, False), (2, True), (4, True)])
def test_posts_that_are_in_both_files_are_said(tmp_path: Path, shared: int, warned: bool) -> None:
    train, other = corpus("a"), corpus("b")
    with log_lines("amlr.training") as lines:
        read_corpora(*written(tmp_path, train, train[:shared] + other[shared:]))
    assert len(lines) == warned
    assert all(f"{shared} of 4 posts" in line and "also in" in line for line in lines)


def test_iob1_is_read_as_iob2_and_said(tmp_path: Path) -> None:
    touching = [*SPANS, [(0, 2, "PER"), (2, 4, "PER")], [(0, 1, "PER"), (1, 2, "LOC")]]
    train, dev = corpus("a", touching), corpus("b", touching)
    paths = written(tmp_path, [as_iob1(post) for post in train], [as_iob1(post) for post in dev])
    with log_lines("amlr.training") as lines:
        assert read_corpora(*paths) == (train, dev)
    assert [("train.txt looks like IOB1: 7 of 8" in lines[0]), len(lines)] == [True, 2]


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_slips_are_no_scheme(is_slip: list[bool]) -> None:
    posts = [LabelledPost(words=("a",), tags=("I-PER" if slip else "B-PER",)) for slip in is_slip]
    assert (iob1_note(Path("x"), posts) is not None) == (2 * sum(is_slip) > len(is_slip))


def test_evaluation_warns_of_what_strict_scores_miss(tiny_plan: Path, tmp_path: Path) -> None:
    iob1 = [as_iob1(post) for post in corpus("a")]
    paths = written(tmp_path, iob1, corpus("b", [[], []]))
    for path, part in zip(paths, ("looks like IOB1", "holds no entities"), strict=True):
        options = ["--engine", tiny_plan, "--provider", "onnxruntime-cpu", "--data", path]
        result = CliRunner().invoke(eval_command, [str(option) for option in options])
        assert result.exit_code == 0, result.output
        assert [part in line for line in result.stderr.splitlines()] == [True]


def test_resuming_nothing_is_said_before_anything_is_read(tmp_path: Path) -> None:
    arguments = ["--data", "absent", "--out", tmp_path / "best.pt", "--resume"]
    arguments += ["--text-encoder", "x", "--image-encoder", "x"]
    result = CliRunner().invoke(train_command, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    with pytest.raises(CheckpointError, match="without --resume") as caught:
        require_state(tmp_path / "best.pt")
    assert result.stderr == f"Error: {caught.value}\n"
    (tmp_path / "best.state.pt").write_bytes(b"")
    assert require_state(tmp_path / "best.pt") == tmp_path / "best.state.pt"
