"""Preference pairs: mined from graded samples, imported from rows, and as stages."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer

from alignment_core.dpo import encode_pair
from alignment_core.preference_pairs import mine_pairs, pairs_report, parse_pair
from alignment_core.problem_sources import RawRow, read_rows
from alignment_core.records import (
    ArtifactRef,
    Completion,
    GradedResponse,
    PreferencePair,
    Problem,
    ScoredCompletion,
    read_jsonl,
    write_jsonl,
)
from alignment_core.runs import MemoryRun
from alignment_core.stage_config import ImportPairsStage, PairsStage
from alignment_core.stages import import_pairs as import_stage
from alignment_core.stages import pairs as pairs_stage
from alignment_core.training_config import DPOConfig, PairsConfig
from flows.settings import load_config
from tasks import preferences as tasks

TEMPLATE = "User: {question}\nAssistant: <think>"
PROBLEMS = [Problem(id=name, question=f"{name}?", prompt=f"ask {name}", ground_truth="1") for name in "abc"]


def scored(
    problem: str, index: int, right: bool, ids: list[int] | None = None, formatted: bool = True, status: str = "ok"
) -> ScoredCompletion:
    """A graded sample."""
    completion = Completion(
        problem_id=problem,
        sample_index=index,
        prompt_ids=[9],
        response_ids=ids or [index + 1],
        text=f"{problem}{index}",
        finish_reason="stop",
    )
    grade = {"format_reward": formatted, "answer_reward": right, "reward": right, "status": status}
    return ScoredCompletion(completion=completion, grade=GradedResponse.model_validate(grade))


def test_a_right_sample_stands_against_a_wrong_one_of_its_problem() -> None:
    samples = [scored("a", 0, True), scored("a", 1, False), scored("b", 0, True), scored("c", 0, False)]
    (pair,) = mine_pairs(samples, PROBLEMS, max_per_problem=4, seed=0)
    assert pair == PreferencePair(
        prompt="ask a",
        chosen_response="a0",
        rejected_response="a1",
        problem_id="a",
        prompt_ids=[9],
        chosen_ids=[1],
        rejected_ids=[2],
    )
    encoded = encode_pair(byte_tokenizer(), pair, ())
    assert (encoded.chosen.response_ids, encoded.rejected.response_ids) == ([1], [2])


def test_samples_are_used_evenly_before_any_is_used_again() -> None:
    samples = [scored("a", i, i < 2) for i in range(8)]
    pairs = mine_pairs(samples, PROBLEMS, max_per_problem=6, seed=0)
    assert sorted(Counter(pair.chosen_response for pair in pairs).values()) == [3, 3]
    assert sorted(Counter(pair.rejected_response for pair in pairs).values()) == [1] * 6
    every = mine_pairs(samples, PROBLEMS, max_per_problem=100, seed=0)
    assert len({(pair.chosen_response, pair.rejected_response) for pair in every}) == len(every) == 12
    assert every[:6] == pairs


def test_the_draw_depends_on_the_seed_and_the_problems_own_samples_alone() -> None:
    samples = [scored("a", i, i < 4) for i in range(8)]
    pairs = mine_pairs(samples, PROBLEMS, 2, seed=0)
    assert mine_pairs(samples[::-1], PROBLEMS, 2, seed=0) == pairs
    assert mine_pairs([scored("b", 0, True), *samples], PROBLEMS, 2, seed=0) == pairs
    assert any(mine_pairs(samples, PROBLEMS, 2, seed=seed) != pairs for seed in range(1, 5))


def test_equal_ids_count_once_and_cut_off_verdicts_not_at_all() -> None:
    samples = [
        scored("a", 0, True),
        scored("a", 1, False, ids=[7, 7]),
        scored("a", 2, False, ids=[7, 7]),
        scored("a", 3, False, status="timeout"),
        scored("a", 4, False, formatted=False),
    ]
    rejected = {pair.rejected_response for pair in mine_pairs(samples, PROBLEMS, 9, seed=0)}
    assert rejected == {"a1", "a4"}
    only = mine_pairs(samples, PROBLEMS, 9, seed=0, rejected="formatted")
    assert [pair.rejected_response for pair in only] == ["a1"]


def test_report_by_hand() -> None:
    samples = [scored("a", 0, True, ids=[1, 2]), scored("a", 1, False), scored("b", 0, True), scored("c", 0, False)]
    report = pairs_report(samples, mine_pairs(samples, PROBLEMS, 1, seed=0))
    assert report == {
        "sampled": 4,
        "problems": 3,
        "problems_all_right": 1,
        "problems_all_wrong": 1,
        "problems_covered": 1,
        "pairs": 1,
        "mean_tokens_chosen": 2,
        "mean_tokens_rejected": 1,
    }


def test_a_cap_must_be_positive() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        mine_pairs([], PROBLEMS, 0, seed=0)


# Rows


def parsed(render_prompts: bool = False, **fields: Any) -> PreferencePair:
    """The pair of a row."""
    return parse_pair(RawRow("pairs.jsonl", 3, fields), TEMPLATE, render_prompts).pair


def sides(pair: PreferencePair) -> tuple[str, str, str]:
    """Prompt, chosen, rejected."""
    return pair.prompt, pair.chosen_response, pair.rejected_response


def said(text: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("names", [("chosen_response", "rejected_response"), ("chosen", "rejected")])
def test_a_prompt_of_no_known_form_is_asked_as_it_is(names: tuple[str, str]) -> None:
    row = {"prompt": "1+1=", names[0]: " 2", names[1]: " 3"}
    assert sides(parsed(**row)) == ("1+1=", " 2", " 3")
    assert sides(parsed(render_prompts=True, **row)) == ("User: 1+1=\nAssistant: <think>", " 2", " 3")


@pytest.mark.parametrize(
    "prompt",
    [
        "Think first.\n\nUser: 1+1?\nAssistant: <think>",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n",
        "Below is a task.\n\n### Instruction:\n1+1?\n\n### Response:\n",
    ],
)
def test_a_prompt_of_a_known_form_is_asked_by_the_template(prompt: str) -> None:
    pair = parsed(prompt=prompt, chosen_response="<think> 2 </think>", rejected_response="<think> 3 </think>")
    assert sides(pair) == ("User: 1+1?\nAssistant: <think>", " 2 </think>", " 3 </think>")


def test_a_prompt_by_the_studys_own_template_is_known_for_what_it_asks() -> None:
    template = "{question}\nBox it."
    row = RawRow("pairs.jsonl", 1, {"prompt": "1+1?\nBox it.", "chosen": "2", "rejected": "3"})
    found = parse_pair(row, template)
    assert (found.question, found.pair.prompt) == ("1+1?", "1+1?\nBox it.")
    assert parse_pair(row, TEMPLATE).question is None


def test_chat_messages() -> None:
    user = {"role": "user", "content": "1+1?"}
    two, three = said("2"), said("3")
    whole = parsed(prompt="ignored", chosen=[user, two], rejected=[user, three])
    alone = parsed(prompt=[user], chosen=[two], rejected=[three])
    assert sides(whole) == sides(alone) == ("User: 1+1?\nAssistant: <think>", "2", "3")


def test_transcripts_part_at_their_last_answer() -> None:
    asked = "\n\nHuman: 1+1?\n\nAssistant:"
    pair = parsed(chosen=f"{asked} 2", rejected=f"{asked} 3")
    assert sides(pair) == ("User: 1+1?\nAssistant: <think>", " 2", " 3")
    longer = f"{asked} What?\n\nHuman: Add.\n\nAssistant:"
    assert sides(parsed(chosen=f"{longer} 2", rejected=f"{longer} 3")) == (longer, " 2", " 3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "response": "r"}, "unknown fields"),
        ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "are equal: remove the row"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "`rejected` is null"),
        ({"prompt": "q", "chosen_response": "a", "rejected_response": 3}, "is int, text is wanted"),
        ({"chosen": "no turns", "rejected": "none"}, "part at the last answer"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: 1", "rejected": "\n\nHuman: b\n\nAssistant: 2"},
            "part at the last answer",
        ),
        ({"chosen": [{"role": "user", "content": "q"}], "rejected": []}, "does not end in an assistant message"),
        ({"chosen": ["x"], "rejected": ["y"]}, "has no role or no text"),
        ({"prompt": 5, "chosen": [said("a")], "rejected": [said("b")]}, "text is wanted"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, line 3: .*{message}"):
        parsed(**row)


# Stages


def test_the_stage_mines_pairs_of_real_graded_responses(tmp_path: Path, shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "graded" / "generations_3294.jsonl").open(encoding="utf-8")]
    chosen = [row for row in rows if row["reward_fn"] == "r1_zero" and row["question"]]
    tokenizer = byte_tokenizer()
    problems, completions, grades, seen = {}, [], [], Counter()
    for row in chosen:
        name = row["question"]
        problems[name] = Problem(id=name, question=row["question"], prompt=row["question"], ground_truth="1")
        ids = tokenizer.encode(row["response"])
        completions.append(
            Completion(
                problem_id=name,
                sample_index=seen[name],
                prompt_ids=[0],
                response_ids=ids,
                text=row["response"],
                finish_reason="stop",
            )
        )
        seen[name] += 1
        grades.append(GradedResponse.model_validate(row["reference_reward"]))
    for folder in ("sampled", "graded", "out"):
        (tmp_path / folder).mkdir()
    write_jsonl(tmp_path / "sampled" / "problems.jsonl", problems.values())
    write_jsonl(tmp_path / "sampled" / "completions.jsonl", completions)
    write_jsonl(tmp_path / "graded" / "graded.jsonl", grades)
    inputs = {"completions": tmp_path / "sampled", "grades": tmp_path / "graded"}
    right: dict[str, set[bool]] = {}
    for completion, grade in zip(completions, grades, strict=True):
        right.setdefault(completion.problem_id, set()).add(grade.reward == 1)
    mixed = sum(found == {True, False} for found in right.values())
    stage = PairsStage(max_per_problem=1, seed=0)
    pairs_stage.run(stage, inputs, tmp_path / "out", MemoryRun())
    pairs = read_jsonl(tmp_path / "out" / "pairs.jsonl", PreferencePair)
    assert mixed > 200
    assert len(pairs) == mixed == json.loads((tmp_path / "out" / "summary.json").read_text())["pairs"]
    verdicts = {(c.problem_id, c.text): g.reward for c, g in zip(completions, grades, strict=True)}
    for pair in pairs:
        assert verdicts[str(pair.problem_id), pair.chosen_response] == 1
        assert verdicts[str(pair.problem_id), pair.rejected_response] == 0


def test_no_pair_at_all_says_why(tmp_path: Path) -> None:
    samples = [scored("a", 0, True), scored("b", 0, False)]
    write_jsonl(tmp_path / "problems.jsonl", PROBLEMS)
    write_jsonl(tmp_path / "completions.jsonl", [one.completion for one in samples])
    write_jsonl(tmp_path / "graded.jsonl", [one.grade for one in samples])
    inputs = {"completions": tmp_path, "grades": tmp_path}
    with pytest.raises(
        ValueError, match="2 samples of 2 problems give no pair: 1 problems are all right and 1 all wrong"
    ):
        pairs_stage.run(PairsStage(max_per_problem=1, seed=0), inputs, tmp_path, MemoryRun())


def imported(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[list[PreferencePair], MemoryRun]:
    """What the import stage makes of rows; `held out?` is a test problem."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = Problem(id="test/1", question="Held out?", prompt="", ground_truth="1")
    write_jsonl(tmp_path / "dev.jsonl", [])
    write_jsonl(tmp_path / "test.jsonl", [held_out])
    run = MemoryRun()
    stage = ImportPairsStage(source=str(source), template=TEMPLATE)
    import_stage.run(stage, {"problems": tmp_path}, tmp_path, run)
    return read_jsonl(tmp_path / "pairs.jsonl", PreferencePair), run


def test_held_out_questions_are_left_out_aloud(tmp_path: Path) -> None:
    rows = [
        {"prompt": "User: held  OUT?\nAssistant: <think>", "chosen_response": " 1", "rejected_response": " 2"},
        {"prompt": "User: other?\nAssistant: <think>", "chosen_response": " 1", "rejected_response": " 2"},
    ]
    pairs, run = imported(tmp_path, rows)
    assert [pair.prompt for pair in pairs] == ["User: other?\nAssistant: <think>"]
    assert run.lines == ["left out 1 of 2 pairs over held-out problems, the first: line 1 asks test/1"]
    with pytest.raises(ValueError, match="all 1 pairs are over dev and test problems"):
        imported(tmp_path, rows[:1])


def test_real_traces_as_pairs_go_through_the_import(tmp_path: Path, shared_data: Path) -> None:
    """Two R1 responses to one prompt, in the published form of prompts, make an importable row."""
    rows = [row.fields for row in read_rows(str(shared_data / "sft" / "r1_math_1767.jsonl"), "train")]
    responses: dict[str, list[str]] = {}
    for row in rows:
        responses.setdefault(row["prompt"], []).append(row["response"])
    lines = [
        {"prompt": prompt, "chosen_response": texts[0], "rejected_response": texts[1]}
        for prompt, texts in responses.items()
        if texts[0].strip() != texts[1].strip()
    ]
    pairs, _ = imported(tmp_path, lines)
    assert len(pairs) == len(lines) > 100
    assert all(pair.prompt.startswith("User: ") and pair.prompt.count("User: ") == 1 for pair in pairs)
    assert [pair.chosen_response for pair in pairs] == [line["chosen_response"] for line in lines]
    ends = [encode_pair(byte_tokenizer(), pair, ("</answer>",)).chosen.response_ids for pair in pairs[:3]]
    assert all(ends)


# Tasks


def test_the_tasks_ask_for_the_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Any, set[str], str]] = []

    def record(_workspace: object, stage: str, config: Any, inputs: Any, label: str) -> ArtifactRef:
        asked.append((stage, config, set(inputs), label))
        return ArtifactRef(stage=stage, key=label, digest=label)

    for room in ("tasks.preferences.run_cached", "tasks.evaluation.run_cached"):
        monkeypatch.setattr(room, record)
    config, workspace = load_config("gsm8k-1.5b"), None
    there = ArtifactRef(stage="x", key="x", digest="x")
    pairs = PairsConfig(questions=10, samples_per_problem=4, max_per_problem=3, rejected="formatted")
    stages = tasks.mine_pairs(workspace, config, there, there, pairs=pairs, seed=1, label="dpo")  # type: ignore[arg-type]
    tasks.optimize_preferences(
        workspace,  # type: ignore[arg-type]
        config,
        there,
        stages[-1],
        there,
        dpo=DPOConfig(beta=0.3),
        seed=1,
        label="dpo",
    )
    assert [(stage, label) for stage, _, _, label in asked] == [
        ("sample", "dpo: sample"),
        ("grade", "dpo: grade"),
        ("pairs", "dpo: pairs"),
        ("dpo", "dpo"),
    ]
    sample, mining, dpo = asked[0][1], asked[2][1], asked[3][1]
    assert (sample.split, sample.limit, sample.samples_per_problem, sample.sampling.min_tokens) == ("train", 10, 4, 4)
    assert (mining.max_per_problem, mining.rejected, dpo.dpo.beta) == (3, "formatted", 0.3)
    assert asked[3][2] == {"model", "pairs", "problems"}
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    given = PairsConfig(source=str(source))
    tasks.import_pairs(workspace, config, there, pairs=given, label="pairs")  # type: ignore[arg-type]
    stage = asked[-1][1]
    assert "source" not in stage.key_settings()
    assert len(str(stage.content)) == 64
    with pytest.raises(ValueError, match=r"pairs\.source is not set"):
        tasks.import_pairs(workspace, config, there, pairs=pairs, label="pairs")  # type: ignore[arg-type]
    gone = PairsConfig(source=str(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match="no file"):
        tasks.import_pairs(workspace, config, there, pairs=gone, label="pairs")  # type: ignore[arg-type]
