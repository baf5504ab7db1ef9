"""Which samples of a problem give the same answer, as the grader sees it: the ballots behind maj@k.

Answers are first merged by their spelling (for `number` by their value), then compared one by one with a
representative of each group, in the grader's own children and under its limits: both sides were written by a model,
and both are hostile input. The first drawn answer of a group stands for it. What bounds the cost: an answer is compared
until it finds its group, an answer that once hit a limit is compared no more and stands for nothing, and a problem has
`MOST_COMPARISONS`; what is then left votes for itself alone, and is counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from alignment_core.answer_parsers import rational
from alignment_core.config import RewardName
from alignment_core.grading import gold_answers
from alignment_core.grading_pool import GradingPool, shared_pool
from alignment_core.latex_normal import normal_string
from alignment_core.records import Completion, GradedResponse
from alignment_core.verdicts import GradingMode, Question, Verdict
from alignment_core.votes import Ballot

MOST_COMPARISONS = 256
"""Comparisons of two answers per problem: enough to tell 23 different answers apart."""


@dataclass
class _Group:
    """Samples of equal answers."""

    text: str
    """The first drawn answer."""
    samples: int = 0
    right: int = 0
    comparable: bool = True
    """Whether the grader came to an end by itself on this answer."""

    def take(self, other: "_Group") -> None:
        """Have the samples of another group."""
        self.samples += other.samples
        self.right += other.right


@dataclass
class _Poll:
    """The count of one problem's votes under way."""

    waiting: list[_Group]
    """Answers of different spellings that are still to be compared."""
    groups: list[_Group] = field(default_factory=list)
    alone: list[_Group] = field(default_factory=list)
    place: int = 0
    """The group that the first waiting answer is compared with next."""
    comparisons: int = 0
    silent: int = 0

    def next_question(self) -> Question | None:
        """What to ask the grader next, after everything that needs no asking; None when all is counted."""
        while self.waiting:
            first = self.waiting[0]
            if not first.comparable or self.comparisons >= MOST_COMPARISONS:
                self.alone.append(self.waiting.pop(0))
            elif self.place == len(self.groups):
                self.groups.append(self.waiting.pop(0))
                self.place = 0
            else:
                golds = tuple(gold_answers(self.groups[self.place].text))
                if golds:
                    return Question(first.text, golds)
                self.place += 1
        return None

    def hear(self, verdict: Verdict) -> None:
        """Take the answer to the question asked last."""
        self.comparisons += 1
        first = self.waiting[0]
        if verdict.status != "ok":
            first.comparable, self.place = False, 0
        elif verdict.correct:
            self.groups[self.place].take(self.waiting.pop(0))
            self.place = 0
        else:
            self.place += 1

    def ballot(self) -> Ballot:
        """The votes, once all is counted."""
        votes = tuple((group.samples, group.right) for group in (*self.groups, *self.alone))
        return Ballot(votes, self.silent, len(self.alone))


def count_votes(
    completions: Sequence[Completion],
    grades: Sequence[GradedResponse],
    reward: RewardName = "r1_zero",
    mode: GradingMode = "fast",
    pool: GradingPool | None = None,
) -> list[Ballot]:
    """One ballot per problem, in order of first appearance; `grades[i]` is the verdict on `completions[i]`.

    Answers are compared in `pool` (by default one child of this process's own, in `mode`). Expressions of `countdown`
    are one vote only where they are spelled alike. Raises ValueError for lists of different lengths.
    """
    polls = list(_polls(completions, grades, reward).values())
    if reward in {"number", "countdown"}:
        return [_unasked(poll).ballot() for poll in polls]
    open_polls = list(polls)
    while asked := [(poll, question) for poll in open_polls if (question := poll.next_question()) is not None]:
        grader = pool or shared_pool(1, mode)
        for (poll, _), verdict in zip(asked, grader.compare([question for _, question in asked]), strict=True):
            poll.hear(verdict)
        open_polls = [poll for poll, _ in asked]
    return [poll.ballot() for poll in polls]


def _polls(completions: Sequence[Completion], grades: Sequence[GradedResponse], reward: RewardName) -> dict[str, _Poll]:
    """By problem, its answers merged by spelling, the first drawn one standing for each."""
    samples: dict[str, list[tuple[int, GradedResponse]]] = {}
    for completion, grade in zip(completions, grades, strict=True):
        samples.setdefault(completion.problem_id, []).append((completion.sample_index, grade))
    return {
        problem_id: _poll((grade for _, grade in sorted(drawn, key=_index)), reward)
        for problem_id, drawn in samples.items()
    }


def _index(drawn: tuple[int, GradedResponse]) -> int:
    return drawn[0]


def _poll(grades: Iterable[GradedResponse], reward: RewardName) -> _Poll:
    """The answers of one problem's samples, in order."""
    spelled: dict[str, _Group] = {}
    silent = 0
    for grade in grades:
        answer = (grade.extracted or "").strip()
        if not answer:
            silent += 1
            continue
        group = spelled.setdefault(_spelling(answer, reward), _Group(answer))
        group.samples += 1
        group.right += grade.answer_reward > 0
        group.comparable &= grade.status == "ok"
    return _Poll(list(spelled.values()), silent=silent)


def _spelling(answer: str, reward: RewardName) -> str:
    """What answers of one vote have in common before the grader is asked."""
    if reward == "countdown":
        return answer
    if reward == "number":
        value = rational(answer)
        return answer if value is None else str(value)
    return normal_string(answer)


def _unasked(poll: _Poll) -> _Poll:
    """A poll whose answers are settled by their spelling."""
    poll.groups, poll.waiting = poll.waiting, []
    return poll
