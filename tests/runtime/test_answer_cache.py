"""Answers that come again are not computed again, and never for another post."""

import io

from PIL import Image

from amlr.runtime.answer_cache import AnswerCache
from amlr.runtime.image import ImageLimits
from amlr.runtime.results import Post, Problem, Result


class Tagger:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Post] = []
        self.warnings: tuple[Problem, ...] = ()

    def __call__(self, posts: list[Post]) -> list[Result]:
        self.asked.extend(posts)
        return [
            Result(
                entities=(),
                image_used=post.image is not None,
                provider="double",
                precision="fp32",
                warnings=self.warnings,
                error=None,
            )
            for post in posts
        ]


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def test_same_post_is_asked_once() -> None:
    cache, tagger = AnswerCache(8, ImageLimits()), Tagger()
    posts = [Post("a"), Post("b"), Post("a")]
    first = cache.tag_batch(posts, "engine", tagger)
    again = cache.tag_batch(posts, "engine", tagger)
    assert first == again
    assert [post.text for post in tagger.asked] == ["a", "b"]
    assert cache.stats().hits == 3
    assert cache.stats().entries == 2


def test_everything_an_answer_depends_on_is_in_the_key() -> None:
    cache, tagger = AnswerCache(20, ImageLimits()), Tagger()
    posts = [
        Post("ab"),
        Post("ab", None, [(0, 2)]),
        Post("ab", None, [(0, 1), (1, 2)]),
        Post("ab", picture("red")),
        Post("ab", picture("blue")),
    ]
    cache.tag_batch(posts, "engine", tagger)
    cache.tag_batch(posts, "other engine", tagger)
    assert len(tagger.asked) == 10


def test_warnings_and_unreadable_pictures_are_not_kept() -> None:
    cache, tagger = AnswerCache(8, ImageLimits()), Tagger()
    tagger.warnings = (Problem(code="image_unreadable", message="x"),)
    cache.tag_batch([Post("a")], "engine", tagger)
    cache.tag_batch([Post("a", "/nowhere.png"), Post(3)], "engine", tagger)  # type: ignore[arg-type]
    assert cache.stats().entries == 0


def test_oldest_answers_leave_first() -> None:
    cache, tagger = AnswerCache(2, ImageLimits()), Tagger()
    for text in ("a", "b", "a", "c"):
        cache.tag_batch([Post(text)], "engine", tagger)
    tagger.asked.clear()
    cache.tag_batch([Post("a"), Post("b")], "engine", tagger)
    assert [post.text for post in tagger.asked] == ["b"]
