"""maj@k: against all subsets, by hand, by the grader's equivalence, and on hostile answers."""

import random
import time
from collections import Counter
from itertools import combinations

import pytest

from alignment_core import voting
from alignment_core.config import RewardName
from alignment_core.grading_pool import GradingPool
from alignment_core.records import Completion, GradedResponse
from alignment_core.verdicts import Verdict
from alignment_core.votes import Ballot, majority_share
from alignment_core.voting import count_votes


def by_all_subsets(ballot: Ballot, k: int) -> float:
    """maj@k by its definition."""
    votes = [(group, size, right) for group, (size, right) in enumerate(ballot.votes)]
    samples = [group for group, size, _ in votes for _ in range(size)] + [-1] * ballot.silent
    total = 0.0
    subsets = list(combinations(samples, k))
    for subset in subsets:
        counts = Counter(group for group in subset if group >= 0)
        winners = [group for group, count in counts.items() if count == max(counts.values())]
        total += sum(ballot.votes[g][1] / ballot.votes[g][0] for g in winners) / max(len(winners), 1)
    return total / len(subsets)


def test_majorities_agree_with_all_subsets() -> None:
    generator = random.Random(0)
    for _ in range(150):
        sizes = [generator.randint(1, 4) for _ in range(generator.randint(1, 4))]
        votes = tuple((size, generator.choice([0, size, generator.randint(0, size)])) for size in sizes)
        ballot = Ballot(votes, generator.randint(0, 3))
        k = generator.randint(1, sum(sizes) + ballot.silent)
        assert majority_share(ballot, k) == pytest.approx(by_all_subsets(ballot, k), abs=1e-12)


def test_majority_by_hand() -> None:
    ballot = Ballot(((2, 2), (1, 0), (1, 0)))
    # of 6 pairs: both right 1; right and wrong 4, a tie of which half are won; both wrong 1
    assert majority_share(ballot, 2) == pytest.approx((1 + 4 / 2) / 6)
    assert (majority_share(ballot, 1), majority_share(ballot, 4)) == (0.5, 1.0)
    assert majority_share(Ballot((), silent=4), 2) == 0.0
    assert majority_share(Ballot(((3, 0), (1, 1))), 4) == 0.0


def test_many_different_answers_are_counted_in_a_moment() -> None:
    started = time.process_time()
    votes = ((9, 9), (8, 0), (7, 0), (5, 0), *[(2, 0)] * 8, *[(1, 0)] * 19)
    for k in (1, 2, 4, 8, 16, 32, 64):
        majority_share(Ballot(votes), k)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("k", [0, 5])
def test_more_votes_than_samples_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"maj@{k} from 4 samples"):
        majority_share(Ballot(((3, 1),), silent=1), k)


def samples(*answers: tuple[str | None, int], problem: str = "p") -> tuple[list[Completion], list[GradedResponse]]:
    """One problem's completions and verdicts, from (answer, right)."""
    completions = [
        Completion(problem_id=problem, sample_index=i, prompt_ids=[0], response_ids=[1], text="", finish_reason="stop")
        for i in range(len(answers))
    ]
    grades = [
        GradedResponse(format_reward=float(text is not None), answer_reward=right, reward=right, extracted=text)
        for text, right in answers
    ]
    return completions, grades


def test_answers_the_grader_calls_equal_are_one_vote() -> None:
    answers = (("\\frac{1}{2}", 1), ("0.5", 1), (" \\dfrac12 ", 1), ("x+1", 0), ("1+x", 0), (None, 0), ("7", 0))
    (ballot,) = count_votes(*samples(*answers))
    assert sorted(ballot.votes) == [(1, 0), (2, 0), (3, 3)]
    assert (ballot.silent, ballot.unmerged) == (1, 0)


def test_numbers_vote_by_their_value_and_expressions_by_their_spelling() -> None:
    assert count_votes(*samples(("8", 1), ("8.0", 1), ("9", 0)), reward="number")[0].votes == ((2, 2), (1, 0))
    assert count_votes(*samples(("1+2", 1), ("2+1", 1)), reward="countdown")[0].votes == ((1, 1), (1, 1))


def test_problems_vote_apart_and_in_order() -> None:
    first, second = samples(("8", 1), ("8", 1)), samples(("8", 0), ("3", 1), problem="q")
    ballots = count_votes([*first[0], *second[0]], [*first[1], *second[1]])
    assert [ballot.votes for ballot in ballots] == [((2, 2),), ((1, 0), (1, 1))]


class Scripted:
    """Stands in for a pool: says that all answers differ, and times out on some."""

    def __init__(self, hostile: str = "") -> None:
        self.hostile = hostile
        self.asked = 0

    def compare(self, questions):  # type: ignore[no-untyped-def]
        self.asked += len(questions)
        return [Verdict(False, status="timeout" if q.answer == self.hostile else "ok") for q in questions]


def test_comparisons_per_problem_are_bounded() -> None:
    answers = [(f"a{i} + b", 0) for i in range(60)]
    pool = Scripted()
    (ballot,) = count_votes(*samples(*answers), pool=pool)  # type: ignore[arg-type]
    assert pool.asked == voting.MOST_COMPARISONS
    assert len(ballot.votes) == 60
    # 22 answers need 231 comparisons among them, and a 23rd finds its place within 256.
    assert ballot.unmerged == 60 - 23


def test_an_answer_that_hit_a_limit_is_compared_once() -> None:
    pool = Scripted(hostile="evil")
    (ballot,) = count_votes(*samples(("a", 0), ("b", 0), ("evil", 1), ("c", 0)), pool=pool)  # type: ignore[arg-type]
    assert pool.asked == 1 + 1 + 2
    assert (ballot.unmerged, sorted(ballot.votes)) == (1, [(1, 0), (1, 0), (1, 0), (1, 1)])


@pytest.mark.parametrize("reward", ["r1_zero", "question_only"])
def test_hostile_answers_on_both_sides_cost_little(reward: RewardName) -> None:
    evil = ["9**9**9**9", "99999999!", "\\frac{" * 160, "{" * 900, "((((" * 200, "x^{9^{9^{9}}}", "\x00", "\\boxed{"]
    started = time.monotonic()
    with GradingPool(1) as pool:
        (ballot,) = count_votes(*samples(*((text, 0) for text in evil)), reward=reward, pool=pool)
    assert sum(size for size, _ in ballot.votes) + ballot.silent == len(evil)
    assert time.monotonic() - started < 20
