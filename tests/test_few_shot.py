"""Few-shot evaluations: the prompt, which examples it shows, the stages, and what enters a key."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer, tiny_model

from alignment_core.comparability import Terms, questions_digest
from alignment_core.config import SamplingConfig
from alignment_core.config_base import Config
from alignment_core.few_shot import find_examples, worked
from alignment_core.fingerprint import stage_fingerprint
from alignment_core.gold_answers import last_boxed
from alignment_core.models import save_model
from alignment_core.problems import load_problems
from alignment_core.prompts import next_question_stop, read_template, render, render_few_shot, template_sha256
from alignment_core.records import ArtifactRef, Completion, Example, Problem, read_jsonl, write_jsonl
from alignment_core.rewards import grade_batch
from alignment_core.runs import MemoryRun
from alignment_core.stage_config import Comparison, FewShotStage, SampleStage
from alignment_core.stages import few_shot as few_shot_stage
from alignment_core.stages import sample as sample_stage
from flows.evaluation import TERMS, settings_of
from flows.settings import load_config
from tasks import evaluation as tasks

TEMPLATE = "Solve.\n\n{examples}Question: {question}\nAnswer:"
STAGE = FewShotStage(shots=2, seed=0, split="test", reward="number")


def problem(number: int, right: bool = True, trace: str | None = None) -> Problem:
    """`number` + 1, with a trace that is right or not."""
    answer = number + 1 if right else 0
    return Problem(
        id=f"train/{number}",
        question=f"What is {number} and 1?",
        prompt=f"{number} and 1?<think>",
        ground_truth=str(number + 1),
        trace=f" count on. </think> <answer> {answer} </answer>" if trace is None else trace,
    )


# The prompt


def test_an_example_is_the_question_block_continued() -> None:
    examples = [Example(question="1+1?", response="It is 2."), Example(question="{question}", response="{examples}")]
    assert render_few_shot(TEMPLATE, examples, "2+{2}?") == (
        "Solve.\n\nQuestion: 1+1?\nAnswer: It is 2.\n\n"
        "Question: {question}\nAnswer: {examples}\n\n"
        "Question: 2+{2}?\nAnswer:"
    )


def test_without_examples_it_is_the_plain_prompt() -> None:
    shipped = read_template("few_shot")
    assert render_few_shot(shipped, [], "1+1?") == render(read_template("plain"), "1+1?")


def test_a_model_is_stopped_at_a_question_of_its_own() -> None:
    assert next_question_stop(TEMPLATE) == "\nQuestion:"
    assert next_question_stop(read_template("few_shot_boxed")) == "\nProblem:"
    assert next_question_stop("{examples}{question}\nA:") is None


@pytest.mark.parametrize(
    "template", ["{question}", "{question}{examples}", "{examples}{examples}{question}", "{examples}"]
)
def test_a_few_shot_template_is_checked(template: str) -> None:
    with pytest.raises(ValueError, match="write it so, or leave"):
        render_few_shot(template, [], "q")


def test_a_few_shot_template_elsewhere_says_where_it_belongs() -> None:
    with pytest.raises(ValueError, match=r"give it as evaluation\.few_shot\.template"):
        render(TEMPLATE, "q")


# The examples


@pytest.mark.parametrize(
    ("reward", "ends"),
    [
        ("number", "count on.\nThe answer is 4."),
        ("question_only", "count on.\nThe answer is $\\boxed{4}$."),
        ("r1_zero", "count on. </think> <answer> 4 </answer>"),
    ],
)
def test_an_example_ends_as_its_reward_reads_it(reward, ends: str) -> None:  # type: ignore[no-untyped-def]
    text = worked(problem(3), reward)
    assert text == ends
    assert grade_batch([text], ["4"], reward)[0].reward == 1


def test_a_solution_that_boxes_its_answer_stays_as_it_is() -> None:
    boxed = problem(3, trace=" so \\boxed{4}. </think> <answer> 4 </answer>")
    assert worked(boxed, "question_only") == "so \\boxed{4}."


def test_examples_are_drawn_by_seed_from_right_traces_that_are_not_asked() -> None:
    train = [problem(i, right=i % 2 == 0) for i in range(20)]
    asked = [problem(4).model_copy(update={"id": "test/1", "question": "what is  4 AND 1?"})]
    wide = STAGE.model_copy(update={"shots": 9})
    found = find_examples(wide, train, asked)
    assert {one.question for one in found} == {problem(i).question for i in range(0, 20, 2) if i != 4}
    assert find_examples(STAGE, train, asked) == found[:2]
    assert find_examples(STAGE.model_copy(update={"seed": 1}), train, asked) != found[:2]
    with pytest.raises(ValueError, match=r"the train split has 9 problems .*shots is 10: lower it"):
        find_examples(STAGE.model_copy(update={"shots": 10}), train, asked)


def test_a_file_gives_its_first_rows(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"Think of {i}.\n#### {i}"} for i in range(5)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_examples(STAGE.model_copy(update={"source": str(path)}), [], [])
    assert [one.response for one in found] == ["Think of 0.\nThe answer is 0.", "Think of 1.\nThe answer is 1."]


def test_real_solutions_make_examples_that_the_reward_accepts(shared_data: Path) -> None:
    for kind, reward in (("gsm8k", "number"), ("math", "question_only")):
        train = load_problems(str(shared_data / kind), kind, "train", read_template("reasoning"), [])
        asked = load_problems(str(shared_data / kind), kind, "test", read_template("reasoning"), [])
        config = STAGE.model_copy(update={"shots": 40, "reward": reward})
        found = find_examples(config, train, asked)
        golds = {one.question: one.ground_truth for one in train}
        grades = grade_batch([one.response for one in found], [golds[one.question] for one in found], reward)
        assert [grade.reward for grade in grades] == [1.0] * 40
        assert all("<<" not in one.response and "think>" not in one.response for one in found)
        if kind == "math":
            assert all(last_boxed(one.response) for one in found)


# The stages


def folders(tmp_path: Path) -> dict[str, Path]:
    """A prepare artifact and a model."""
    prepared = tmp_path / "problems"
    prepared.mkdir()
    write_jsonl(prepared / "train.jsonl", [problem(i) for i in range(6)])
    asked = [problem(i).model_copy(update={"meta": {"in_math500": i == 31}}) for i in range(30, 33)]
    write_jsonl(prepared / "test.jsonl", asked)
    (prepared / "template.txt").write_text("{question}<think>")
    tokenizer = byte_tokenizer()
    save_model(tiny_model(tokenizer, vocab_size=300), tokenizer, tmp_path / "model" / "model")
    return {"problems": prepared, "model": tmp_path / "model"}


def sampled(tmp_path: Path, inputs: dict[str, Path], **more: object) -> tuple[list[Problem], Terms]:
    """Run the sample stage; the problems as they were asked, and the terms."""
    output = tmp_path / f"sampled{len(list(tmp_path.iterdir()))}"
    output.mkdir()
    settings = {"sampling": SamplingConfig(max_tokens=3), "split": "test", "seed": 0}
    sample_stage.run(SampleStage.model_validate(settings | more), inputs, output, MemoryRun())
    assert len(read_jsonl(output / "completions.jsonl", Completion)) == len(
        (output / "problems.jsonl").open().readlines()
    )
    return read_jsonl(output / "problems.jsonl", Problem), Terms.model_validate_json(
        (output / "terms.json").read_text()
    )


def test_a_few_shot_evaluation_from_stage_to_stage(tmp_path: Path) -> None:
    inputs = folders(tmp_path)
    output = tmp_path / "examples"
    output.mkdir()
    few_shot_stage.run(STAGE.model_copy(update={"shots": 1}), {"problems": inputs["problems"]}, output, MemoryRun())
    examples = read_jsonl(output / "examples.jsonl", Example)
    template = "{examples}Q: {question}\nA:"
    asked, terms = sampled(tmp_path, inputs | {"examples": output}, template=template)
    assert [one.prompt for one in asked] == [render_few_shot(template, examples, one.question) for one in asked]
    assert (terms.template_sha256, terms.shots, terms.n_problems) == (template_sha256(template), 1, 3)
    assert terms.questions_sha256 == questions_digest(asked)


def test_math500_is_what_its_rows_say(tmp_path: Path) -> None:
    inputs = folders(tmp_path)
    asked, terms = sampled(tmp_path, inputs, subset="math500")
    assert [one.id for one in asked] == ["train/31"]
    assert (terms.n_problems, terms.template_sha256) == (1, template_sha256("{question}<think>"))
    write_jsonl(inputs["problems"] / "test.jsonl", [problem(1)])
    with pytest.raises(ValueError, match="no problem of the split says in_math500"):
        sampled(tmp_path, inputs, subset="math500")


def test_math_5k_holds_math500(shared_data: Path) -> None:
    problems = load_problems(str(shared_data / "math"), "math", "test", "{question}", [])
    assert (len(problems), sum(one.meta.get("in_math500") is True for one in problems)) == (5000, 500)


def test_examples_of_the_asked_split_are_refused(tmp_path: Path) -> None:
    stage = STAGE.model_copy(update={"split": "train"})
    with pytest.raises(ValueError, match="drawn from the train split, which is asked itself"):
        few_shot_stage.run(stage, folders(tmp_path), tmp_path, MemoryRun())


# The keys


def test_a_file_of_examples_counts_by_its_content() -> None:
    one = STAGE.model_copy(update={"source": "/here/a.jsonl", "content": "x"})
    moved = one.model_copy(update={"source": "/there/b.jsonl", "seed": 5})
    edited = one.model_copy(update={"content": "y"})
    assert one.key_settings() == moved.key_settings() != edited.key_settings()


def test_sampling_does_not_feel_the_grader() -> None:
    code = stage_fingerprint("sample", {"sampling": {"backend": "transformers"}}).definitions
    assert not [name for name in code if ".grading" in name or ".rewards" in name or ".few_shot" in name]


def asked_by(monkeypatch: pytest.MonkeyPatch, **settings: object) -> dict[str, Any]:
    """Settings of the stages, by kind, that an evaluation under these settings asks for."""
    asked: dict[str, Any] = {}

    def record(
        _workspace: object, stage: str, config: Config, inputs: Mapping[str, ArtifactRef], _label: str
    ) -> ArtifactRef:
        asked[stage] = (config, set(inputs))
        return ArtifactRef(stage=stage, key=stage, digest=stage)

    monkeypatch.setattr(tasks, "run_cached", record)
    there = ArtifactRef(stage="x", key="x", digest="x")
    workspace: Any = None
    comparison = Comparison(name="zero-shot", method="zero-shot")
    tasks.evaluate(workspace, load_config("gsm8k-1.5b", dict(settings)), comparison, there, there)
    return asked


def test_others_terms_differ_in_what_they_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {name: asked_by(monkeypatch, **settings_of(name)) for name in (None, *TERMS)}
    rewards = {name: stages["grade"][0].reward for name, stages in asked.items()}
    assert rewards == {
        None: "r1_zero",
        "r1_zero": "r1_zero",
        "question_only": "question_only",
        "few_shot": "number",
        "few_shot_boxed": "question_only",
    }
    assert [name for name, stages in asked.items() if "few_shot" in stages] == ["few_shot", "few_shot_boxed"]
    sample, inputs = asked["few_shot"]["sample"]
    assert sample.template == read_template("few_shot")
    assert sample.sampling.stop == ("\nQuestion:", "</answer>")
    assert inputs == {"model", "problems", "examples"}
    assert {name: stages["sample"][0].sampling.stop for name, stages in asked.items() if "few" not in str(name)} == {
        None: ("</answer>",),
        "r1_zero": ("</answer>",),
        "question_only": (),
    }
    assert asked["few_shot_boxed"]["few_shot"][0].reward == "question_only"
    with pytest.raises(ValueError, match="no terms 'few-shot': choose one of r1_zero, question_only"):
        settings_of("few-shot")


def test_settings_of_few_shot_reach_the_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    template = tmp_path / "mine.txt"
    template.write_text(TEMPLATE)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1?", "answer": "#### 1"}\n')
    few_shot = {"template": str(template), "shots": 7, "seed": 3, "source": str(rows)}
    asked = asked_by(monkeypatch, **{"evaluation.few_shot": few_shot, "evaluation.subset": "math500"})
    stage = asked["few_shot"][0]
    assert (stage.shots, stage.seed, stage.source, len(stage.content)) == (7, 3, str(rows), 64)
    assert (asked["sample"][0].template, asked["sample"][0].subset) == (TEMPLATE, "math500")
    few_shot["source"] = str(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"no file .*none\.jsonl"):
        asked_by(monkeypatch, **{"evaluation.few_shot": few_shot})
