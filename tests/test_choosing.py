"""The winner among members, on outcomes counted by hand."""

import pytest

from alignment_core.choosing import choose


def outcomes(*solved: int, n: int = 40) -> list[dict[str, bool]]:
    """A run per seed that solves the first so many of n problems."""
    return [{f"p{index:02d}": index < count for index in range(n)} for count in solved]


def test_the_best_mean_over_seeds_wins() -> None:
    choice = choose({"a": outcomes(10, 20), "b": outcomes(18, 14), "c": outcomes(2, 20)}, "best")
    assert choice.winner == "b"
    assert [one.accuracy for one in choice.candidates] == [15 / 40, 16 / 40, 11 / 40]
    assert not choice.clear(), "one problem in forty is no evidence"


def test_of_equals_the_first_listed_wins() -> None:
    assert choose({"a": outcomes(10), "b": outcomes(10)}, "best").winner == "a"
    assert choose({"b": outcomes(10), "a": outcomes(10)}, "best").winner == "b"


def test_the_first_listed_stays_unless_it_is_beaten() -> None:
    assert choose({"a": outcomes(10), "b": outcomes(12)}, "significant").winner == "a"
    beaten = choose({"a": outcomes(10), "b": outcomes(30), "c": outcomes(34)}, "significant")
    assert beaten.winner == "c"
    assert beaten.clear()
    assert choose({"a": outcomes(30), "b": outcomes(10)}, "significant").winner == "a"


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="different problems"):
        choose({"a": outcomes(10), "b": outcomes(10, n=41)}, "best")
    with pytest.raises(ValueError, match="nothing to choose from"):
        choose({"a": []}, "best")
