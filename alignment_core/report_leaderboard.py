"""Whether a run may stand on the assignment's leaderboard: its time, its problems, its prompt and its sampling."""

from alignment_core.analysis import EvaluationRow
from alignment_core.comparability import PUBLISHED_R1_ZERO, SHOWN
from alignment_core.report_answers import ExperimentAnswer
from alignment_core.report_checks import Check
from alignment_core.report_data import ReportData
from alignment_core.report_settings import Answers, all_values, values_of
from alignment_core.report_text import NOTHING, duration, listed, number

GIVEN = {"prepare", "pretrain", "import_model"}
"""Stages that come before the clock starts: the problems and the base model."""
ASKED = {"sampling.temperature": "1", "sampling.max_tokens": "1024", "evaluation.reward": "r1_zero"}
LIMITS = ("evaluation.limit", "data.limit_test", "evaluation.subset")


def budgeted(data: ReportData, answers: Answers) -> Answers:
    """GRPO experiments whose members had a budget of time."""
    return [one for one in answers if one.outline.method == "grpo" and values_of(data, one, "budget.hours")]


def leaderboard_checks(data: ReportData, answers: Answers) -> list[Check]:
    """What the leaderboard asks of a run, one line each."""
    return [*(_time(data, answer) for answer in answers), *_problems(data, answers), *_terms(data, answers)]


def _time(data: ReportData, answer: ExperimentAnswer) -> Check:
    """The longest run of an experiment against its budget: training and evaluation, what it started from included."""
    budgets = [float(value) for value in values_of(data, answer, "budget.hours")]
    seconds = [_seconds(data, row) for member in answer.done for row in member.rows]
    known = [one for one in seconds if one is not None]
    name, granted = answer.outline.name, min(budgets)
    asked = f"{granted:g} h" if granted >= 1 else duration(3600 * granted)
    if len(known) < len(seconds) or not known:
        return Check(f"{name}: within {asked}, evaluation included: the time of its stages is not known", None)
    of = f", the longest of {len(known)} runs" if len(known) > 1 else ""
    words = f"{name}: took {duration(max(known))} of {asked}, evaluation included{of}"
    return Check(words, max(known) <= 3600 * granted)


def _seconds(data: ReportData, row: EvaluationRow) -> float | None:
    """Time of all stages behind an evaluation from the base model on; None where one is not known."""
    stages = {stage.key: stage for stage in data.stages}
    links = [link for link in data.stands_on.get(row.name, []) if link.stage not in GIVEN]
    found = [stages[link.key].seconds if link.key in stages else None for link in links]
    known = [one for one in found if one is not None]
    return sum(known) if known and len(known) == len(found) else None


def _problems(data: ReportData, answers: Answers) -> list[Check]:
    """Whether every test problem was asked."""
    reports = [row.report for answer in answers for member in answer.done for row in member.rows]
    counts = sorted({report.n // report.samples_per_problem for report in reports})
    told = " and ".join(number(count) for count in counts)
    splits = all_values(data, answers, "evaluation.split") or ["test"]
    limits = [f"{name} {value}" for name in LIMITS for value in all_values(data, answers, name) if value != NOTHING]
    size = data.sizes.get("test")
    if splits != ["test"]:
        return [Check(f"all test problems: {told} of {listed(splits)} were asked", False)]
    if limits or (size is not None and counts != [size]):
        why = f" ({listed(limits)})" if limits else ""
        return [Check(f"all test problems: {told} were asked{why}", False)]
    return [Check(f"all {told} test problems", True)]


def _terms(data: ReportData, answers: Answers) -> list[Check]:
    """The prompt by its sha256, and how answers were drawn and judged."""
    names = all_values(data, answers, "prompt")
    own = data.prompts[0] if data.prompts and names in ([], [data.prompts[0].name]) else None
    name, digest = (listed(names), None) if own is None else (own.name, own.sha256)
    here = "sha256 not known" if digest is None else f"sha256 {digest[:SHOWN]}"
    words = f"the prompt r1_zero, sha256 {PUBLISHED_R1_ZERO[:SHOWN]} (here {name}, {here})"
    prompt = Check(words, None if digest is None else digest == PUBLISHED_R1_ZERO)
    drawn = []
    for name, asked in ASKED.items():
        values, last = all_values(data, answers, name), name.rpartition(".")[2]
        drawn.append(Check(f"{last} {asked} (here {listed(values)})", values == [asked] if values else None))
    return [prompt, *drawn]
