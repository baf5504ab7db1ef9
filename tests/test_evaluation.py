"""Numbers of an evaluation, failure labels and failing examples: pytest tests/test_evaluation.py"""

import json
from pathlib import Path

import pytest

from alignment_core.evaluation import correct_by_problem, evaluate, failing_examples
from alignment_core.records import Completion, EvalReport, FinishReason, GradedResponse, Problem
from alignment_core.statistics import wilson_interval
from alignment_core.taxonomy import REASONS, failure_reason
from alignment_core.votes import Ballot

GOOD = " 3 + 5 = 8. </think> <answer> 8 </answer>"


def _problem(number: int = 0, truth: str = "8") -> Problem:
    return Problem(id=f"p{number}", question="3 + 5?", prompt="User: 3 + 5?\nAssistant: <think>", ground_truth=truth)


def _completion(
    text: str = GOOD,
    number: int = 0,
    sample: int = 0,
    length: int = 4,
    finish: FinishReason = "stop",
    entropy: float | None = None,
) -> Completion:
    return Completion(
        problem_id=f"p{number}",
        sample_index=sample,
        prompt_ids=[1],
        response_ids=[2] * length,
        text=text,
        finish_reason=finish,
        mean_entropy=entropy,
    )


def _grade(form: int, answer: int, extracted: str | None = None, **more: object) -> GradedResponse:
    return GradedResponse.model_validate(
        {"format_reward": form, "answer_reward": answer, "reward": answer, "extracted": extracted} | more
    )


def _reason_of_answer(answer: str | None, truth: str, text: str = GOOD, **more: object) -> str | None:
    return failure_reason(_problem(truth=truth), _completion(text), _grade(1, 0, answer, **more))


# Labels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 + 5 = 8. The answer is 8", "no_closing_think"),
        ("8 <answer> 8 </answer>", "no_closing_think"),
        ("8 </think> so 8", "no_answer_tag"),
        ("8 </think> <answer> 8", "unclosed_answer"),
        ("8 </think>\n<answer> 8 </answer>", "newline_between_tags"),
        ("8 </think><answer> 8 </answer>", "spacing_between_tags"),
        ("8 </think>  <answer> 8 </answer>", "spacing_between_tags"),
        ("8 </think> well: <answer> 8 </answer>", "text_between_tags"),
        ("<answer> 8 </answer> </think>", "tags_out_of_order"),
    ],
)
def test_each_tag_fault_has_its_label(text: str, reason: str) -> None:
    assert failure_reason(_problem(), _completion(text), _grade(0, 0)) == reason


def test_a_truncated_response_is_not_blamed_for_the_tags_it_never_reached() -> None:
    cut = failure_reason(_problem(), _completion("3 + 5 is", finish="length"), _grade(0, 0))
    ended = failure_reason(_problem(), _completion("3 + 5 is", finish="eos"), _grade(0, 0))
    assert (cut, ended) == ("truncated", "no_closing_think")


@pytest.mark.parametrize("finish", ["length", "stop"])
def test_what_only_the_gate_refused_stays_a_parser_matter(finish: FinishReason) -> None:
    completion = _completion("8 </think>\n<answer> 8 </answer>", finish=finish)
    assert failure_reason(_problem(), completion, _grade(0, 0)) == "newline_between_tags"


@pytest.mark.parametrize(
    ("answer", "truth", "reason"),
    [
        (None, "8", "empty_answer"),
        ("  ", "8", "empty_answer"),
        ("9", "8", "wrong_number"),
        ("-8", "8", "wrong_number"),
        ("8.5 apples", "8", "wrong_number"),
        ("8x", "8", "wrong_number"),
        ("8^2", "8", "wrong_number"),
        ("\\sqrt{8}", "8", "wrong_number"),
        ("5 + 8", "8", "wrong_number"),
        ("8 = 9", "8", "wrong_number"),
        ("8 apples", "8", "unit_or_format_mismatch"),
        ("$8.00", "8", "unit_or_format_mismatch"),
        ("$1,200.50 dollars", "1200.5", "unit_or_format_mismatch"),
        ("5 + 3 = 8", "8", "unit_or_format_mismatch"),
        ("2/4", "\\frac{1}{2}", "unit_or_format_mismatch"),
        ("\\dfrac{3}{4}", "0.75", "unit_or_format_mismatch"),
        ("x^2 + \\text{y}", "x^2 + y", "unit_or_format_mismatch"),
        ("8 or 9", "8", "several_answers"),
        ("7, 8", "8", "several_answers"),
        ("x = 7 or x = 8", "8", "several_answers"),
        ("eight", "8", "not_a_number"),
        ("8/0", "8", "wrong_number"),
        ("x + 2", "x + 1", "wrong_expression"),
        ("7", "x + 7", "wrong_expression"),
    ],
)
def test_each_wrong_answer_has_its_label(answer: str | None, truth: str, reason: str) -> None:
    assert _reason_of_answer(answer, truth) == reason


def test_several_answer_blocks_and_suspicion_count_as_several_answers() -> None:
    twice = "</think> <answer> 7 </answer> <answer> 9 </answer>"
    assert _reason_of_answer("9", "8", text=twice) == "several_answers"
    assert _reason_of_answer("9", "8", suspicious=True) == "several_answers"


def test_boxes_and_numbers_have_labels_of_their_own() -> None:
    unformatted = _grade(0, 0)
    assert failure_reason(_problem(), _completion("it is 8"), unformatted, "question_only") == "no_box"
    assert failure_reason(_problem(), _completion("\\boxed{8"), unformatted, "question_only") == "unclosed_box"
    assert failure_reason(_problem(), _completion("eight"), unformatted, "number") == "no_number"
    assert _reason_of_answer(None, "8", text="</think> <answer> \\boxed{8 </answer>") == "unclosed_box"


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_grader_that_gave_up_is_named(status: str) -> None:
    assert _reason_of_answer("9**9**9", "8", status=status) == f"grader_{status}"


def test_a_right_answer_has_no_failure_reason() -> None:
    assert failure_reason(_problem(), _completion(), _grade(1, 1, "8")) is None


@pytest.mark.parametrize(
    "answer", ["9" * 100_000, "1/" * 50_000, "\\frac{" * 20_000, "{" * 50_000, "\u0660", "²", "\x00"]
)
def test_hostile_answers_get_a_label_quickly(answer: str) -> None:
    assert _reason_of_answer(answer, "8") in REASONS


def test_real_graded_responses_all_get_a_fitting_label(shared_data: Path) -> None:
    tag_faults = {"truncated", "unclosed_answer", "text_between_tags", "tags_out_of_order", "newline_between_tags"}
    tag_faults |= {"no_closing_think", "no_answer_tag", "spacing_between_tags", "no_box", "unclosed_box"}
    seen: set[str] = set()
    with (shared_data / "graded" / "generations_3294.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        verdict, extracted = row["reference_reward"], row["response"].rpartition("<answer>")[2].replace("</answer>", "")
        grade = _grade(verdict["format_reward"], verdict["answer_reward"], extracted)
        problem = _problem(truth=str(row["ground_truth"]))
        reason = failure_reason(problem, _completion(row["response"]), grade, row["reward_fn"])
        assert (reason is None) == (verdict["answer_reward"] == 1.0)
        if reason is not None:
            assert (reason in tag_faults) == (verdict["format_reward"] == 0.0)
            seen.add(reason)
    assert {"no_closing_think", "no_answer_tag", "wrong_number", "no_box"} <= seen


# Numbers


def _small_evaluation() -> tuple[list[Problem], list[Completion], list[GradedResponse]]:
    completions = [
        _completion(number=0, length=10, entropy=0.5),
        _completion("7 </think> <answer> 7 </answer>", number=1, length=20, entropy=1.0),
        _completion("so 3 and 5 and", number=2, length=52, finish="length", entropy=2.0),
        _completion("</think>\n<answer> 8 </answer>", number=3, length=6),
    ]
    grades = [_grade(1, 1, "8"), _grade(1, 0, "7", suspicious=True), _grade(0, 0), _grade(0, 0, status="timeout")]
    return [_problem(i) for i in range(4)], completions, grades


def test_report_by_hand() -> None:
    report = evaluate(*_small_evaluation())
    assert (report.n, report.n_correct, report.n_formatted) == (4, 1, 2)
    assert (report.accuracy, report.format_rate, report.accuracy_formatted) == (0.25, 0.5, 0.5)
    assert (report.accuracy_low, report.accuracy_high) == wilson_interval(1, 4)
    assert report.truncation_rate == 0.25
    assert report.categories == {"1,1": 1, "1,0": 1, "0,0": 2}
    assert report.failures == {"truncated": 1, "several_answers": 1, "grader_timeout": 1}
    assert (report.mean_length, report.mean_length_correct, report.mean_length_incorrect) == (22, 10, 26)
    # 82 tokens carry an entropy: (0.5 * 10 + 1.0 * 20 + 2.0 * 52) / 82
    assert report.mean_entropy == pytest.approx(129 / 82)
    assert (report.n_suspicious, report.n_timeouts, report.response_tokens) == (1, 1, 88)


def test_what_has_no_members_has_no_mean() -> None:
    report = evaluate([_problem()], [_completion("no")], [_grade(0, 0)])
    assert (report.accuracy_formatted, report.mean_length_correct, report.mean_entropy) == (None, None, None)


def test_an_answer_accepted_without_the_format_is_a_category() -> None:
    report = evaluate([_problem()], [_completion("8")], [_grade(0, 1, "8")])
    assert report.categories == {"1,1": 0, "1,0": 0, "0,0": 0, "0,1": 1}
    assert report.accuracy_formatted is None


def test_several_samples_of_a_problem_do_not_narrow_the_interval() -> None:
    problems = [_problem(0), _problem(1)]
    completions = [_completion(number=i, sample=s) for i in range(2) for s in range(8)]
    report = evaluate(problems, completions, [_grade(1, 1, "8")] * 8 + [_grade(1, 0, "7")] * 8)
    assert (report.n, report.accuracy) == (16, 0.5)
    assert (report.accuracy_low, report.accuracy_high) == wilson_interval(1, 2)


def test_a_problem_counts_by_the_shares_of_its_samples() -> None:
    completions = [_completion(number=0, sample=1), _completion(number=0, sample=0), _completion(number=1)]
    grades = [_grade(1, 1), _grade(1, 0), _grade(1, 0)]
    assert correct_by_problem(completions, grades) == {"p0": (1.0, 0.5), "p1": (1.0, 0.0)}


def test_pass_at_k_by_hand() -> None:
    completions = [_completion(number=i, sample=s) for i in range(2) for s in range(4)]
    grades = [_grade(1, 1, "8")] + [_grade(1, 0, "7")] * 7
    report = evaluate([_problem(0), _problem(1)], completions, grades)
    # p0: 1 of 4 right, so 1/4, 1/2 and 1; p1: none
    assert [(one.k, one.value) for one in report.pass_at_k] == [(1, 0.125), (2, 0.25), (4, 0.5)]
    assert (report.pass_at_k[2].low, report.pass_at_k[2].high) == wilson_interval(1, 2)
    assert report.pass_at_k[0].value == report.accuracy
    assert (report.samples_per_problem, report.maj_at_k) == (4, [])


def test_votes_enter_the_report() -> None:
    completions = [_completion(number=i, sample=s) for i in range(2) for s in range(2)]
    grades = [_grade(1, 1, "8"), _grade(1, 0, "7"), _grade(1, 1, "8"), _grade(1, 1, "8")]
    ballots = [Ballot(((1, 1), (1, 0))), Ballot(((2, 2),), unmerged=1)]
    report = evaluate([_problem(0), _problem(1)], completions, grades, ballots=ballots)
    assert [(one.k, one.value) for one in report.maj_at_k] == [(1, 0.75), (2, 0.75)]
    assert report.n_unmerged == 1


def test_one_sample_each_has_no_pass_at_k_and_an_old_report_still_loads() -> None:
    report = evaluate(*_small_evaluation())
    assert (report.samples_per_problem, report.pass_at_k, report.maj_at_k) == (1, [], [])
    new = {"samples_per_problem", "pass_at_k", "maj_at_k", "n_unmerged"}
    assert EvalReport.model_validate(report.model_dump(exclude=new)) == report


@pytest.mark.parametrize(("field", "value"), [("answer_reward", "nan"), ("reward", "inf"), ("format_reward", "nan")])
def test_a_reward_that_is_no_number_is_refused(field: str, value: str) -> None:
    grade = _grade(1, 1, "8").model_copy(update={field: float(value)})
    with pytest.raises(ValueError, match=rf"{field} of sample 0 of problem 'p0' is {value}"):
        evaluate([_problem()], [_completion()], [grade])


def test_an_entropy_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="mean_entropy of sample 0 of problem 'p0' is nan"):
        evaluate([_problem()], [_completion(entropy=float("nan"))], [_grade(1, 1, "8")])


@pytest.mark.parametrize(
    ("problems", "completions", "grades", "message"),
    [
        ([_problem()], [_completion()], [], "1 completions with 0 grades"),
        ([_problem(0), _problem(1)], [_completion()], [_grade(1, 1)], "'p1' has no completion"),
        ([_problem(1)], [_completion()], [_grade(1, 1)], "'p0'"),
        ([_problem(0), _problem(0)], [_completion()], [_grade(1, 1)], "distinct ids"),
        ([], [], [], "at least one"),
        (
            [_problem(0), _problem(1)],
            [_completion(), _completion(sample=1), _completion(number=1)],
            [_grade(1, 1)] * 3,
            "1 to 2 completions",
        ),
    ],
)
def test_a_wrong_denominator_is_refused(
    problems: list[Problem], completions: list[Completion], grades: list[GradedResponse], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(problems, completions, grades)


# Examples


def test_failing_examples_cover_both_kinds_up_to_the_limit() -> None:
    problems = [_problem(i) for i in range(30)]
    completions = [_completion("9 </think> <answer> 9 </answer>" if i % 2 else "what", i) for i in range(30)]
    grades = [_grade(1, 0, "9") if i % 2 else _grade(0, 0) for i in range(30)]
    rows = failing_examples(problems, completions, grades)
    assert [row["kind"] for row in rows] == ["1,0"] * 10 + ["0,0"] * 10
    assert rows[0] == {
        "kind": "1,0",
        "problem_id": "p1",
        "prompt": problems[1].prompt,
        "response": "9 </think> <answer> 9 </answer>",
        "truth": "8",
        "extracted": "9",
        "reason": "wrong_number",
        "blame": "model",
        "finish_reason": "stop",
    }
    assert json.loads(json.dumps(rows)) == rows
    assert len(failing_examples(problems, completions, grades, per_kind=12)) == 24


def test_right_answers_are_no_failing_examples() -> None:
    assert failing_examples([_problem()], [_completion()], [_grade(1, 1, "8")]) == []
