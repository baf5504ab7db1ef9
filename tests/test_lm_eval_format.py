"""Results in lm-evaluation-harness's layout: its fields, its hashes, and a whole export of an evaluation."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment_core.comparability import Terms
from alignment_core.evaluation import evaluate
from alignment_core.lm_eval_format import sample_lines, write_lm_eval
from alignment_core.records import ArtifactRef, Completion, EvalReport, Problem, write_jsonl
from alignment_core.rewards import grade_batch
from alignment_core.runs import MemoryRun
from alignment_core.stage_config import GradeStage
from alignment_core.stages import grade as grade_stage
from flows.evaluation import export_results, require_format

TERMS = Terms(
    template_sha256="ab",
    shots=2,
    questions_sha256="cd",
    n_problems=2,
    temperature=1.0,
    top_p=0.9,
    max_tokens=64,
    stop=("</answer>",),
    reward="r1_zero",
)
PROBLEMS = [
    Problem(id="test/1", question="1+1?", prompt="User: 1+1?", ground_truth="2", meta={"level": "Level 1"}),
    Problem(id="test/2", question="2+2?", prompt="User: 2+2?", ground_truth="4"),
]
FIELDS = {
    "doc_id": int,
    "doc": dict,
    "target": str,
    "arguments": dict,
    "resps": list,
    "filtered_resps": list,
    "filter": str,
    "metrics": list,
    "doc_hash": str,
    "prompt_hash": str,
    "target_hash": str,
    "exact_match": float,
    "format": float,
}
"""Fields of a line as lm-eval 0.4.13 writes it (evaluator.py, loggers/evaluation_tracker.py), with two metrics."""


def row(problem: str, response: str, right: float, sample: int = 0) -> dict[str, Any]:
    """A line of results.jsonl."""
    verdict = {"format_reward": 1.0, "answer_reward": right, "reward": right, "extracted": response.strip()}
    return {"id": problem, "sample": sample, "response": response, **verdict}


def load_samples(path: Path) -> list[dict[str, Any]]:
    """What a reader of the harness's sample files expects of each line."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert {name: type(value) for name, value in line.items()} == FIELDS
        for one in line["arguments"].values():
            assert (type(one["arg_0"]), type(one["arg_1"])) == (str, dict)
        assert list(line["arguments"]) == [f"gen_args_{i}" for i in range(len(line["resps"]))]
        assert len(line["resps"]) == len(line["filtered_resps"])
        assert all(isinstance(text, str) for request in line["resps"] for text in request)
        assert set(line["metrics"]) < set(line)
        asked = line["arguments"]["gen_args_0"]["arg_0"]
        texts = (json.dumps(line["doc"], indent=2, ensure_ascii=False), asked, line["target"])
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        assert [line["doc_hash"], line["prompt_hash"], line["target_hash"]] == hashes
    assert [line["doc_id"] for line in lines] == list(range(len(lines)))
    return lines


def test_a_line_by_hand() -> None:
    rows = [row("test/2", " 5", 0.0), row("test/1", " 2", 1.0)]
    first, second = sample_lines(PROBLEMS, rows, TERMS)
    assert first["doc"] == {"id": "test/1", "question": "1+1?", "answer": "2", "level": "Level 1"}
    assert first["arguments"]["gen_args_0"] == {
        "arg_0": "User: 1+1?",
        "arg_1": {"until": ["</answer>"], "do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 64},
    }
    assert (first["target"], first["resps"], first["filtered_resps"]) == ("2", [[" 2"]], ["2"])
    assert (first["exact_match"], second["exact_match"], second["format"]) == (1.0, 0.0, 1.0)


def test_several_samples_are_repeats_of_one_request() -> None:
    rows = [
        row("test/1", " 2", 1.0),
        row("test/1", " 3", 0.0, 1),
        row("test/2", " 4", 1.0),
        row("test/2", " 4", 1.0, 1),
    ]
    first, second = sample_lines(PROBLEMS, rows, TERMS)
    assert (first["resps"], first["filtered_resps"]) == ([[" 2", " 3"]], [["2", "3"]])
    assert (first["exact_match"], second["exact_match"]) == (0.5, 1.0)


def test_a_foreign_result_is_refused() -> None:
    with pytest.raises(ValueError, match="'test/9', which is not given"):
        list(sample_lines(PROBLEMS, [row("test/9", "x", 0.0)], TERMS))


def test_a_lone_surrogate_comes_through(tmp_path: Path) -> None:
    text = "half a pair: \ud83d </think> <answer> 2 </answer>"
    rows = [row("test/1", text, 1.0), row("test/2", "4", 1.0)]
    report = EvalReport.model_construct(accuracy=1.0, accuracy_low=0.3, accuracy_high=1.0, format_rate=1.0)
    samples, _ = write_lm_eval(tmp_path, "a", "2026", PROBLEMS, rows, TERMS, report)
    assert load_samples(samples)[0]["resps"] == [[text]]


@pytest.mark.parametrize(("task", "date"), [("a/b", "2026"), ("a", "2026_01")])
def test_names_that_make_no_files_are_refused(tmp_path: Path, task: str, date: str) -> None:
    report = EvalReport.model_construct()
    with pytest.raises(ValueError, match="no slash in the one, no underscore in the other"):
        write_lm_eval(tmp_path, task, date, [], [], TERMS, report)


def graded(tmp_path: Path, samples: int) -> Any:
    """A workspace whose store holds a sample and a grade artifact, the latter by its real stage."""
    asked, verdicts = tmp_path / "sampled", tmp_path / "graded"
    for folder in (asked, verdicts):
        folder.mkdir()
    texts = [" 2 </think> <answer> 2 </answer>", "\U0001f600 3 </think> <answer> \\frac{1}{2} </answer>"]
    completions = [
        Completion(
            problem_id=problem.id,
            sample_index=i,
            prompt_ids=[0],
            response_ids=[1, 2],
            text=texts[i % 2],
            finish_reason="stop",
        )
        for problem in PROBLEMS
        for i in range(samples)
    ]
    write_jsonl(asked / "problems.jsonl", PROBLEMS)
    write_jsonl(asked / "completions.jsonl", completions)
    (asked / "terms.json").write_text(TERMS.model_dump_json())
    grade_stage.run(GradeStage(split="test"), {"completions": asked}, verdicts, MemoryRun())
    parents = {"completions": ArtifactRef(stage="sample", key="s", digest="s")}
    store = SimpleNamespace(
        path=lambda ref: asked if ref.stage == "sample" else verdicts,
        manifest=lambda _stage, _key: SimpleNamespace(parents=parents),
    )
    return SimpleNamespace(store=store), completions


@pytest.mark.parametrize("samples", [1, 2])
def test_an_evaluation_is_exported_in_both_formats(tmp_path: Path, samples: int) -> None:
    workspace, completions = graded(tmp_path, samples)
    out = tmp_path / "out"
    export_results(workspace, ArtifactRef(stage="grade", key="g", digest="g"), out, "lm-eval", "gsm8k-test")
    names = sorted(path.name for path in out.iterdir())
    assert names[0].startswith("results.jsonl")
    (path,) = out.glob("samples_gsm8k-test_*.jsonl")
    lines = load_samples(path)
    golds = [problem.ground_truth for problem in PROBLEMS for _ in range(samples)]
    expected = evaluate(PROBLEMS, completions, grade_batch([one.text for one in completions], golds))
    assert sum(line["exact_match"] for line in lines) / len(lines) == expected.accuracy
    (results,) = out.glob("results_*.json")
    table = json.loads(results.read_text())
    assert table["results"]["gsm8k-test"]["exact_match,none"] == expected.accuracy
    assert table["n-shot"] == {"gsm8k-test": 2}
    terms = Terms.model_validate_json((out / "terms.json").read_text())
    assert (terms.reward, terms.mode) == ("r1_zero", "fast")
    summary = EvalReport.model_validate_json((out / "summary.json").read_text())
    assert len((out / "results.jsonl").read_text().splitlines()) == summary.n == 2 * samples
    # p1: right and wrong; p2: both wrong. A tie is won half the time.
    expected_votes = [(1, 0.25), (2, 0.25)] if samples == 2 else []
    assert [(one.k, one.value) for one in summary.maj_at_k] == expected_votes


def test_without_the_format_only_our_own_files_are_written(tmp_path: Path) -> None:
    workspace, _ = graded(tmp_path, 1)
    export_results(workspace, ArtifactRef(stage="grade", key="g", digest="g"), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.jsonl", "summary.json", "terms.json"}
    with pytest.raises(ValueError, match="no format 'lm_eval': choose one of jsonl, lm-eval"):
        require_format("lm_eval")
