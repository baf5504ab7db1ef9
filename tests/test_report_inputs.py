"""What a page is read from: lineage through manifests, origins, tokens, prompts: pytest tests/test_report_inputs.py"""

import json
from pathlib import Path
from typing import Any

import pytest
from invented_study import PROBLEMS, analysis_of, graded

from alignment_core.evaluation import evaluate, failing_examples
from alignment_core.events import Event
from alignment_core.manifest import Components, ManifestDraft, Producer
from alignment_core.records import ArtifactRef
from alignment_core.report import render
from alignment_core.report_inputs import (
    Lineage,
    owners,
    read_curve,
    read_manifest,
    read_prompts,
    read_samples,
    read_sizes,
    read_solved,
    read_versions,
    stage_row,
    stage_rows,
)
from alignment_core.stage_config import AcceptedStage, Comparison, ExperimentOutline, MemberOutline, ReportStage
from alignment_core.stages.report import collect, published_rows
from alignment_core.store import Store

RUN = Comparison(
    name="grpo/lr/1/seed0", method="grpo", start="zero-shot", seed=0, experiment="grpo/lr", varied={"r": 1}
)
BASE = Comparison(name="zero-shot", method="zero-shot")
VERSIONS = {"torch": "2.13.0", "vllm": "absent"}
ANNOTATIONS = {"run": "r1", "study": "s", "threads": "1"}
TEMPLATE = "User: {question}\nAssistant: <think>"


class Shelf:
    """A store whose artifacts are made by hand."""

    def __init__(self, root: Path) -> None:
        self.store, self._clock = Store(root), 0.0

    def put(self, stage: str, label: str, parents: dict[str, ArtifactRef] | None = None, **files: Any) -> ArtifactRef:
        """An artifact with these files (underscores for dots); `events` is its record, `settings` its settings."""
        events, settings = files.pop("events", []), files.pop("settings", {})
        source = self.store.root / ".made"
        (source / "record").mkdir(parents=True)
        for name, content in files.items():
            (source / name.replace("_", ".")).write_text(content if isinstance(content, str) else json.dumps(content))
        lines = [Event(time=0.0, **event).model_dump_json() for event in events]
        (source / "record" / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
        self._clock += 1
        return self.store.publish(
            source,
            ManifestDraft(
                stage=stage,
                key=f"{stage}-{label}".replace("/", "-").replace(" ", "-"),
                label=label,
                components=Components(stage=stage, config={}, inputs={}, code={}, versions=VERSIONS),
                parents=parents or {},
                producer=Producer(started=self._clock, seconds=2.5, host="here", annotations=ANNOTATIONS),
                settings=settings,
            ),
        )  # fmt: skip

    def path(self, ref: ArtifactRef) -> Path:
        return self.store.path(ref)


def points(*metrics: dict[str, float]) -> list[dict[str, Any]]:
    return [{"kind": "point", "step": step, "metrics": own} for step, own in enumerate(metrics, 1)]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "store")


@pytest.fixture
def inputs(shelf: Shelf) -> dict[str, ArtifactRef]:
    """A study of one GRPO run: what its report stage is given."""
    prepare = shelf.put(
        "prepare", "prepare", template_txt=TEMPLATE, leakage_json={"shared": 0}, events=points({"data/train": 256.0})
    )
    model = shelf.put("pretrain", "base model", events=points({"train/tokens": 400.0}))
    rows = [{"kind": "rows", "step": step, "name": "rollouts", "rows": [{"response": f"r{step}"}]} for step in (1, 2)]
    grpo = shelf.put(
        "grpo", "grpo/lr/1/seed0", {"model": model, "problems": prepare},
        events=points({"train/tokens": 50.0, "train/tokens_sampled": 60.0, "eval/accuracy": 0.5}) + rows,
    )  # fmt: skip
    found = {"prepare": prepare, "grpo/lr/1/seed0": grpo}
    for run, of, right in ((BASE, model, 1), (RUN, grpo, 9)):
        settings = {"template": "Question: {question}"} if run is BASE else {"template": None}
        sample = shelf.put(
            "sample", f"{run.name}: sample", {"model": of, "problems": prepare}, settings=settings,
            events=[{"kind": "point", "step": 12, "metrics": {"sample/mean_length": 5.0}}],
        )  # fmt: skip
        completions, grades = graded(right, 10)
        results = [
            {"id": problem.id, "answer_reward": grade.answer_reward, "response": completion.text}
            for problem, completion, grade in zip(PROBLEMS, completions, grades, strict=True)
        ]
        found[f"grade: {run.name}"] = shelf.put(
            "grade", f"{run.name}: grade", {"completions": sample},
            summary_json=evaluate(PROBLEMS, completions, grades).model_dump(),
            examples_json=failing_examples(PROBLEMS, completions, grades),
            results_jsonl="".join(json.dumps(row) + "\n" for row in results),
        )  # fmt: skip
    analysis = analysis_of((BASE, 1, 10), (RUN, 9, 10)).model_dump(mode="json")
    return found | {"analysis": shelf.put("analyze", "analyze", analysis_json=analysis)}


def lineage_of(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> Lineage:
    return Lineage({name: shelf.path(ref) for name, ref in inputs.items()})


def test_a_number_stands_on_its_grade_sample_model_and_problems(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    lineage = lineage_of(shelf, inputs)
    links = lineage.links(inputs["grade: grpo/lr/1/seed0"].key)
    assert [link.stage for link in links] == ["grade", "sample", "grpo", "prepare", "pretrain"]
    assert links[2].key == inputs["grpo/lr/1/seed0"].key


def test_what_is_gone_from_the_store_is_left_out(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    for folder in (shelf.store.root / "pretrain").iterdir():
        (folder / "manifest.json").unlink()
    lineage = lineage_of(shelf, inputs)
    assert "pretrain" not in {one.stage for one in lineage.manifests.values()}
    assert read_manifest(shelf.store.root / "nowhere") is None


def test_a_stage_belongs_to_the_experiment_that_first_needed_it(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    members = [("grpo/lr", [inputs["grade: grpo/lr/1/seed0"].key]), ("later", [inputs["grade: grpo/lr/1/seed0"].key])]
    found = owners(lineage_of(shelf, inputs), members, [inputs["grade: zero-shot"].key])
    assert {found[ref.key] for name, ref in inputs.items() if name.startswith("grpo")} == {"grpo/lr"}
    assert found[inputs["prepare"].key] == found[inputs["grade: zero-shot"].key] == ""


def test_rows_tell_cost_tokens_and_origin(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    row = stage_row(shelf.path(inputs["grpo/lr/1/seed0"]))
    assert (row.seconds, row.trained_tokens, row.sampled_tokens, row.study, row.run) == (2.5, 50.0, 60.0, "s", "r1")
    sample = next((shelf.store.root / "sample").iterdir())
    assert stage_row(sample).sampled_tokens == 60.0
    old = AcceptedStage(label="x", stage="sft", key="k", seconds=1.0, reason="harmless")
    assert [one.accepted for one in stage_rows([sample], [old])] == ["", "harmless"]


def test_records_become_curves_samples_and_sizes(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    grpo, prepare = shelf.path(inputs["grpo/lr/1/seed0"]), shelf.path(inputs["prepare"])
    assert [point["step"] for point in read_curve(grpo)] == [1]
    assert read_samples(grpo, "rollouts") == [{"step": 1, "response": "r1"}, {"step": 2, "response": "r2"}]
    assert read_samples(grpo, "validation") == []
    assert read_sizes(prepare) == {"train": 256}
    (prepare / "record" / "events.jsonl").unlink()
    assert read_sizes(prepare) == {}
    solved = read_solved(shelf.path(inputs["grade: grpo/lr/1/seed0"]))
    assert [row["problem_id"] for row in solved] == ["p0", "p1", "p2", "p3", "p4", "p5"]


def test_prompts_are_told_with_their_sha256_each_once(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    own, other = read_prompts(lineage_of(shelf, inputs), "tiny")
    assert (own.name, own.text, other.name, other.text) == ("tiny", TEMPLATE, "", "Question: {question}")
    assert own.sha256 == "c7d73cfcd37c5337063c5c31c0de6c0198f94cfd0486dc55330de6739a79450f"


def test_versions_are_those_that_computed(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    assert read_versions(lineage_of(shelf, inputs), {"git": "abc"}) == {
        "git": "abc",
        "host": "here",
        "threads": "1",
        "torch": "2.13.0",
    }


def test_the_stage_puts_it_all_on_the_page(shelf: Shelf, inputs: dict[str, ArtifactRef]) -> None:
    outline = ExperimentOutline(
        name="grpo/lr", method="grpo", members=(MemberOutline(group="grpo/lr/1", varied={"r": 1}),), seeds=(0, 1)
    )
    config = ReportStage(
        title="t", description="d", evaluations=(BASE, RUN), experiments=(outline,), prompt="tiny",
        runs=("grpo/lr/1/seed0",), command="alignflow run x", code={"git": "abc"},
    )  # fmt: skip
    data = collect(config, {name: shelf.path(ref) for name, ref in inputs.items()})
    assert {row.label: row.owner for row in data.stages}["grpo/lr/1/seed0"] == "grpo/lr"
    assert [link.stage for link in data.stands_on["zero-shot"]] == ["grade", "sample", "pretrain", "prepare"]
    html = render(data)
    assert "grpo/lr/1/seed1" in html.replace("<wbr>", "")
    assert "alignflow run x" in html


TERMS = {
    "template_sha256": "0" * 64, "questions_sha256": "f" * 64, "n_problems": 200, "temperature": 1.0, "top_p": 1.0,
    "max_tokens": 1024, "stop": ["</answer>"], "reward": "r1_zero", "mode": "fast",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "there"), [("gsm8k", True), ("math", True), ("arithmetic", False)])
def test_a_part_of_a_benchmark_is_labelled_not_left_out(tmp_path: Path, kind: str, there: bool) -> None:
    (tmp_path / "terms.json").write_text(json.dumps(TERMS))
    settings = {"data.kind": kind, "model.source": "Qwen/Qwen2.5-Math-1.5B"}
    config = ReportStage(title="t", description="d", evaluations=(BASE, RUN), settings=settings)
    zero_shot, grpo = (published_rows(one, tmp_path, config) for one in (BASE, RUN))
    assert bool(zero_shot) is bool(grpo) is there
    assert {row.method.partition(",")[0] for row in zero_shot} <= {"zero-shot"}
    assert not any(row.method.startswith("zero-shot") for row in grpo)
    assert not any(row.comparable for row in [*zero_shot, *grpo])
    if kind == "gsm8k":
        assert zero_shot[0].evaluation_set == grpo[0].evaluation_set == "GSM8K test"
        assert [row.note for row in grpo] == ["read off a plot", "then it crashed; read off a plot"]
        assert zero_shot[0].differs == [
            "template (sha256 000000000000 here, 56213732da87 there)",
            "evaluation set (another set, of 200 here, GSM8K test (1319) there)",
        ]


def test_nothing_stands_beside_a_round_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "terms.json").write_text(json.dumps(TERMS))
    config = ReportStage(title="t", description="d", evaluations=(), settings={"data.kind": "math"})
    last, before = (Comparison(name=f"ei/seed0{end}", method="ei") for end in ("", "/round-01"))
    assert [row.method[:16] for row in published_rows(last, tmp_path, config)] == ["Expert Iteration"] * 3
    assert published_rows(before, tmp_path, config) == []
    (tmp_path / "terms.json").unlink()
    assert published_rows(last, tmp_path, config) == []


def test_what_changes_no_number_is_in_no_key() -> None:
    one = ReportStage(title="t", description="d", evaluations=())
    other = one.model_copy(update={"command": "alignflow run x", "code": {"git": "abc"}})
    assert one.key_settings() == other.key_settings()
