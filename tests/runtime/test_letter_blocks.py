"""Which blocks of code points the letters of a text come from."""

from amlr.runtime.radii import letter_blocks


def test_letter_blocks_see_letters_alone() -> None:
    assert letter_blocks("") == letter_blocks("☃ 2024 !") == set()
    assert letter_blocks("naïve") == {0}
    assert letter_blocks("Ωα Ж 中") == {3, 4, 0x4E}
