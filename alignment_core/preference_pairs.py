"""Preference pairs: mined from our own graded samples, or read from rows that others wrote.

Mined: of one problem a right sample against a wrong one, by their token ids. Imported: {prompt, chosen_response,
rejected_response}, {prompt, chosen, rejected} (texts, or lists of chat messages), and {chosen, rejected} alone, two
transcripts of `Human:` and `Assistant:` turns that part at the last answer.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from alignment_core.problem_sources import RawRow
from alignment_core.prompts import render
from alignment_core.records import PreferencePair, Problem, ScoredCompletion
from alignment_core.row_parsers import text_of
from alignment_core.seeding import derive_seed
from alignment_core.traces import embedded_question, fit_response

Rejected = Literal["any", "formatted"]
"""Which wrong samples may be rejected: any, or only formatted ones, so that a pair is about the answer alone."""
LAST_ANSWER = re.compile(r"(?P<prompt>.*\n\nAssistant:)(?P<answer>.*)", re.DOTALL)
ONE_TURN = re.compile(r"\s*Human:(?P<question>(?:(?!\n\nHuman:).)*)\n\nAssistant:", re.DOTALL)


class ImportedPair(NamedTuple):
    """A pair of a row, and the question it is about where that is known."""

    pair: PreferencePair
    question: str | None


def mine_pairs(
    scored: Sequence[ScoredCompletion],
    problems: Sequence[Problem],
    max_per_problem: int,
    seed: int,
    rejected: Rejected = "any",
) -> list[PreferencePair]:
    """Right against wrong samples of each problem, at most `max_per_problem` pairs of it, each by its token ids.

    Samples of equal ids count once. Both sides are shuffled by seed and paired so that every sample is used before
    any is used again; the draw depends on the problem's own samples alone. A sample whose grading hit a limit is
    neither right nor wrong. Problems in order of first appearance. Raises ValueError for a cap that is not positive.
    """
    if max_per_problem <= 0:
        raise ValueError(f"max_per_problem {max_per_problem} must be positive")
    prompts = {problem.id: problem.prompt for problem in problems}
    by_problem: dict[str, dict[tuple[int, ...], ScoredCompletion]] = {}
    for one in sorted(scored, key=lambda item: item.completion.sample_index):
        by_problem.setdefault(one.completion.problem_id, {}).setdefault(tuple(one.completion.response_ids), one)
    order = dict.fromkeys(one.completion.problem_id for one in scored)
    pairs: list[PreferencePair] = []
    for problem_id in order:
        samples = list(by_problem[problem_id].values())
        right = _shuffled([one for one in samples if one.grade.reward == 1], seed, "right")
        wrong = _shuffled([one for one in samples if _may_be_rejected(one, rejected)], seed, "wrong")
        chosen = list(_even_pairs(len(right), len(wrong)))[:max_per_problem]
        pairs.extend(_as_pair(prompts[problem_id], right[i], wrong[j]) for i, j in chosen)
    return pairs


def pairs_report(scored: Sequence[ScoredCompletion], pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Counts of samples, problems and pairs; mean lengths of both sides, since DPO may learn length alone."""
    solved: dict[str, set[bool]] = {}
    for one in scored:
        solved.setdefault(one.completion.problem_id, set()).add(one.grade.reward == 1)
    report = {
        "sampled": len(scored),
        "problems": len(solved),
        "problems_all_right": sum(found == {True} for found in solved.values()),
        "problems_all_wrong": sum(found == {False} for found in solved.values()),
        "problems_covered": len({pair.problem_id for pair in pairs}),
        "pairs": len(pairs),
    }
    if not pairs:
        return {name: float(value) for name, value in report.items()}
    lengths = {
        "mean_tokens_chosen": sum(len(pair.chosen_ids or ()) for pair in pairs) / len(pairs),
        "mean_tokens_rejected": sum(len(pair.rejected_ids or ()) for pair in pairs) / len(pairs),
    }
    return {name: float(value) for name, value in {**report, **lengths}.items()}


def parse_pair(row: RawRow, template: str, render_prompts: bool = False) -> ImportedPair:
    """The pair of a row. Where its prompt is a known form around a question, the study's `template` asks that instead.

    Any other prompt is asked as it is, or put into the template with `render_prompts`. Raises ValueError, naming the
    row, for other fields, texts that are none, transcripts that part elsewhere, and sides that are equal.
    """
    prompt, chosen, rejected, question = _sides(row)
    if question is None:
        question = embedded_question(prompt, template)
    if question is None and render_prompts:
        question = prompt
    if question is not None:
        chosen, rejected = (fit_response(text, template, prompt) for text in (chosen, rejected))
        prompt = render(template, question)
    if chosen.strip() == rejected.strip():
        raise ValueError(f"{row.where}: chosen and rejected are equal: remove the row, it prefers nothing")
    own_id = row.fields.get("problem_id")
    pair = PreferencePair(
        prompt=prompt,
        chosen_response=chosen,
        rejected_response=rejected,
        problem_id=str(own_id) if isinstance(own_id, str | int) else None,
    )
    return ImportedPair(pair, question)


def _sides(row: RawRow) -> tuple[str, str, str, str | None]:
    """Prompt, chosen, rejected, and the question where the row tells it apart from its form."""
    names = set(row.fields)
    if {"prompt", "chosen_response", "rejected_response"} <= names:
        return text_of(row, "prompt"), text_of(row, "chosen_response"), text_of(row, "rejected_response"), None
    if not {"chosen", "rejected"} <= names:
        raise ValueError(
            f"{row.where}: unknown fields {sorted(names)}: rename them to {{prompt, chosen_response, "
            "rejected_response}, {prompt, chosen, rejected} or {chosen, rejected}"
        )
    if isinstance(row.fields["chosen"], list):
        return _chat_sides(row)
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    if "prompt" in names:
        return text_of(row, "prompt"), chosen, rejected, None
    return _transcript_sides(row, chosen, rejected)


def _transcript_sides(row: RawRow, chosen: str, rejected: str) -> tuple[str, str, str, str | None]:
    """Two transcripts, split before their last answers."""
    ends = [LAST_ANSWER.fullmatch(text) for text in (chosen, rejected)]
    if ends[0] is None or ends[1] is None or ends[0]["prompt"] != ends[1]["prompt"]:
        raise ValueError(
            f"{row.where}: without a `prompt`, chosen and rejected are transcripts of 'Human:' and 'Assistant:' turns "
            "that part at the last answer: add the prompt, or remove the row"
        )
    turn = ONE_TURN.fullmatch(ends[0]["prompt"])
    question = turn["question"].strip() if turn is not None else None
    return ends[0]["prompt"], ends[0]["answer"], ends[1]["answer"], question


def _chat_sides(row: RawRow) -> tuple[str, str, str, str | None]:
    """Two lists of messages, whose last ones are the answers; one user turn before them is the question."""
    before, answers = [], []
    for name in ("chosen", "rejected"):
        turns = list(_messages(row, name))
        if len(turns) < 1 or turns[-1][0] != "assistant":
            raise ValueError(f"{row.where}: `{name}` does not end in an assistant message: fix or remove the row")
        before.append(turns[:-1])
        answers.append(turns[-1][1])
    turns = before[0] or _prompt_messages(row)
    if before[0] != before[1] or [role for role, _ in turns] != ["user"]:
        raise ValueError(f"{row.where}: chat pairs need the same single user message before both answers: fix the row")
    return turns[0][1], answers[0], answers[1], turns[0][1]


def _messages(row: RawRow, name: str) -> Iterator[tuple[str, str]]:
    """(role, text) of a field's chat messages."""
    for turn in row.fields[name]:
        fields = turn if isinstance(turn, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str) or not isinstance(content, str) or not content.strip():
            raise ValueError(f"{row.where}: a message of `{name}` has no role or no text: fix or remove the row")
        yield role, content


def _prompt_messages(row: RawRow) -> list[tuple[str, str]]:
    """The turns before the answers, where only `prompt` has them."""
    if isinstance(row.fields.get("prompt"), list):
        return list(_messages(row, "prompt"))
    return [("user", text_of(row, "prompt"))]


def _may_be_rejected(one: ScoredCompletion, rejected: Rejected) -> bool:
    grade = one.grade
    return grade.reward != 1 and grade.status == "ok" and (rejected == "any" or grade.format_reward == 1)


def _shuffled(samples: list[ScoredCompletion], seed: int, side: str) -> list[ScoredCompletion]:
    """The samples in an order drawn by seed, each by its own number."""

    def draw(one: ScoredCompletion) -> int:
        return derive_seed(seed, "pairs", side, one.completion.problem_id, one.completion.sample_index)

    return sorted(samples, key=draw)


def _even_pairs(rights: int, wrongs: int) -> Iterator[tuple[int, int]]:
    """All pairs of indices, those first that use every index of the smaller side and fresh ones of the larger."""
    small, large = sorted((rights, wrongs))
    if small == 0:
        return
    for offset in sorted(range(large), key=lambda shift: (shift % small, shift // small)):
        for index in range(small):
            other = (index + offset) % large
            yield (index, other) if rights <= wrongs else (other, index)


def _as_pair(prompt: str, right: ScoredCompletion, wrong: ScoredCompletion) -> PreferencePair:
    return PreferencePair(
        prompt=prompt,
        chosen_response=right.completion.text,
        rejected_response=wrong.completion.text,
        problem_id=right.completion.problem_id,
        prompt_ids=right.completion.prompt_ids,
        chosen_ids=right.completion.response_ids,
        rejected_ids=wrong.completion.response_ids,
    )
