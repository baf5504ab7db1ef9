"""Whether a number may stand beside a published one: the same prompt, problems and sampling, or what differs.

An evaluation is told by its terms: the sha256 of its template, a digest of the questions it asks (a set is what its
rows are, not what its file is called), how many worked examples it shows, how it samples, and the reward. Published
numbers lie in `templates/published_numbers.json`, each with its source and the terms under which it was reported; where
a report leaves a term open, that is told as a doubt, never taken for agreement. A number stands beside an evaluation of
its own kind: what GRPO reached elsewhere says nothing about a base model.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from alignment_core.leakage import case_and_space_free
from alignment_core.prompts import template_sha256
from alignment_core.records import Problem, Record
from alignment_core.stage_config import SampleStage

PUBLISHED_R1_ZERO = "56213732da87e12ace60a2b88a16df0af18280fb0563a957cbecc938a6a2ac0e"
"""sha256 of the r1_zero template under which most of the field's numbers were reported."""
SHOWN = 12
"""Characters of a digest that a sentence shows."""
MOST = 6
"""Published numbers beside one evaluation, where few of them are comparable."""
Benchmark = Literal["gsm8k", "math"]
Kind = Literal["zero-shot", "sft", "ei", "grpo", "dpo", "leaderboard"]
KINDS: dict[str, tuple[Kind, ...]] = {
    "zero-shot": ("zero-shot",),
    "sft": ("sft",),
    "ei": ("ei",),
    "grpo": ("grpo", "leaderboard"),
    "dpo": ("dpo",),
}
"""Method of an evaluation -> the kinds of numbers that stand beside it: a leaderboard's are GRPO's under a budget."""


class Terms(Record):
    """Under what an evaluation was made; what is None is unknown."""

    template_sha256: str | None
    shots: int = 0
    """Worked examples before each question."""
    questions_sha256: str | None
    """Digest of the questions asked (`questions_digest`)."""
    n_problems: int
    temperature: float
    top_p: float
    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    samples_per_problem: int = 1
    reward: str | None = None
    """The grade stage adds it."""
    mode: str | None = None


class EvaluationSet(Record):
    """A set of problems the field reports on."""

    name: str
    benchmark: Benchmark
    n: int
    questions_sha256: str | None
    """None where the set is not public or not settled: nothing can be shown to be it."""


class PublishedNumber(Record):
    """One accuracy that others reported."""

    source: str
    """Repository or report, as it can be found."""
    kind: Kind
    method: str
    accuracy: float
    """Per cent."""
    evaluation_set: str
    """Name of an `EvaluationSet`."""
    model: str
    template_sha256: str | None
    shots: int = 0
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = 0
    """Published evaluation code sets none; the 4 of rollouts counts where a report evaluates with these."""
    stop: tuple[str, ...] | None = ("</answer>",)
    reward: str | None = None
    precision: Literal["reported", "read off a plot"] = "reported"
    note: str = ""


class Published(Record):
    """Everything quoted, with the sets it is about."""

    sets: list[EvaluationSet]
    numbers: list[PublishedNumber]

    def set_named(self, name: str) -> EvaluationSet:
        """The set of that name; KeyError if there is none."""
        return {one.name: one for one in self.sets}[name]


class Comparability(Record):
    """One published number beside ours."""

    published: PublishedNumber
    comparable: bool
    differs: list[str]
    """What differs or is not known, in words; empty if comparable."""

    @property
    def label(self) -> str:
        """`comparable`, or `not comparable: …` with what differs."""
        return "comparable" if self.comparable else f"not comparable: {'; '.join(self.differs)}"


def questions_digest(problems: Sequence[Problem]) -> str:
    """sha256 over the sorted distinct questions and how often each occurs, case and white space aside."""
    asked = sorted(case_and_space_free(problem.question) for problem in problems)
    return hashlib.sha256("\x1f".join(asked).encode()).hexdigest()


def asked_terms(config: SampleStage, problems: Sequence[Problem], template: str | None, shots: int = 0) -> Terms:
    """The terms of a sample stage over the problems it asks; what it asks them for is the grade stage's to say."""
    return Terms(
        template_sha256=None if template is None else template_sha256(template),
        shots=shots,
        questions_sha256=questions_digest(problems),
        n_problems=len(problems),
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_tokens=config.sampling.max_tokens,
        min_tokens=config.sampling.min_tokens,
        stop=config.sampling.stop,
        samples_per_problem=config.samples_per_problem,
    )


def published_numbers() -> Published:
    """The published numbers that are quoted, with their sources."""
    path = Path(__file__).parent / "templates" / "published_numbers.json"
    return Published.model_validate(json.loads(path.read_text(encoding="utf-8")))


def evaluation_set(terms: Terms, published: Published | None = None) -> EvaluationSet | None:
    """The known set whose questions these are; None for any other."""
    sets = (published or published_numbers()).sets
    known = (one for one in sets if one.questions_sha256 is not None)
    return next((one for one in known if one.questions_sha256 == terms.questions_sha256), None)


def compare_with(
    terms: Terms, number: PublishedNumber, model: str | None = None, published: Published | None = None
) -> Comparability:
    """Whether our evaluation may stand beside a published number, and what differs if not.

    `model` is the model our evaluation started from, where it is to be the same one; None does not ask.
    """
    known = published or published_numbers()
    wanted = known.set_named(number.evaluation_set)
    differs = [
        *_prompt_differs(terms, number),
        *_set_differs(terms, wanted, known),
        *_sampling_differs(terms, number),
    ]
    if number.reward is None or terms.reward is None or number.reward != terms.reward:
        differs.append(f"reward ({_told(terms.reward)} here, {_told(number.reward)} there)")
    if terms.mode == "thorough":
        differs.append("grader (thorough here; published verdicts are those of the fast mode)")
    if model is not None and model.rsplit("/", 1)[-1] != number.model.rsplit("/", 1)[-1]:
        differs.append(f"start model ({model} here, {number.model} there)")
    return Comparability(published=number, comparable=not differs, differs=differs)


def beside_published(
    terms: Terms, model: str | None = None, *, method: str | None = None, benchmark: str | None = None
) -> list[Comparability]:
    """Published numbers beside ours: the comparable ones, those on the same benchmark, then in the order of the file.

    method: of our evaluation, for a short list: numbers of its kind, on another benchmark only where there is none on
    this one, and no more than `MOST` unless more are comparable; None asks for every number.
    benchmark: of our problems, where they are no known set.
    """
    known = published_numbers()
    ours = evaluation_set(terms, known)
    benchmark = benchmark if ours is None else ours.benchmark
    kinds = get_args(Kind) if method is None else KINDS.get(method, ())
    found = [compare_with(terms, number, model, known) for number in known.numbers if number.kind in kinds]

    def elsewhere(one: Comparability) -> bool:
        return known.set_named(one.published.evaluation_set).benchmark != benchmark

    found.sort(key=lambda one: (not one.comparable, elsewhere(one)))
    if method is None:
        return found
    most = max(MOST, sum(one.comparable for one in found))
    return ([one for one in found if not elsewhere(one)] or found)[:most]


def _prompt_differs(terms: Terms, number: PublishedNumber) -> list[str]:
    differs = []
    if terms.template_sha256 is None or number.template_sha256 is None:
        differs.append("template (not known on both sides)")
    elif terms.template_sha256 != number.template_sha256:
        differs.append(
            f"template (sha256 {terms.template_sha256[:SHOWN]} here, {number.template_sha256[:SHOWN]} there)"
        )
    if terms.shots != number.shots:
        differs.append(f"worked examples ({terms.shots} here, {number.shots} there)")
    return differs


def _set_differs(terms: Terms, wanted: EvaluationSet, published: Published) -> list[str]:
    if wanted.questions_sha256 is not None and wanted.questions_sha256 == terms.questions_sha256:
        return []
    ours = evaluation_set(terms, published)
    here = f"{ours.name} ({ours.n})" if ours is not None else f"another set, of {terms.n_problems}"
    doubt = "" if wanted.questions_sha256 is not None else ", whose rows are not public"
    return [f"evaluation set ({here} here, {wanted.name} ({wanted.n}){doubt} there)"]


def _sampling_differs(terms: Terms, number: PublishedNumber) -> list[str]:
    differs = []
    for name, here, there in (
        ("temperature", terms.temperature, number.temperature),
        ("top_p", terms.top_p, number.top_p),
        ("max_tokens", terms.max_tokens, number.max_tokens),
        ("min_tokens", terms.min_tokens, number.min_tokens),
    ):
        if there is None or here != there:
            differs.append(f"{name} ({here:g} here, {_told(there)} there)")
    if number.stop is None or set(terms.stop) != set(number.stop):
        differs.append(f"stop ({_listed(terms.stop)} here, {_listed(number.stop)} there)")
    return differs


def _listed(stop: Sequence[str] | None) -> str:
    """Stop strings in quotes, so that a line break in one is seen."""
    return _told(None) if stop is None else ", ".join(map(repr, stop)) or "none"


def _told(value: object) -> str:
    return "not told" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
