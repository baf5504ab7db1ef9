"""The shipped study of distillation, for real: who learns from the teacher learns from its right answers alone."""

import json
import subprocess
from pathlib import Path

import pytest
from real_servers import COMMAND, ROOT, clean_environment

from alignment_core.manifest import Manifest
from alignment_core.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_pupil_imitates_the_right_answers_of_its_teacher(tmp_path: Path) -> None:
    command = [*COMMAND, "run", "smoke/distillation", "--root", str(tmp_path)]
    done = subprocess.run(
        command, env=clean_environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "data" / "store")
    by_label = {manifest.label: manifest for manifest in store.manifests()}
    filtered, distilled = by_label["sft/filtered/seed0"], by_label["sft/distilled/seed0"]
    assert filtered.digest != distilled.digest
    assert distilled.parents["examples"] == by_label["teacher/teacher/seed0: select"].ref()
    assert by_label["teacher/teacher/seed0: sample"].parents["model"] == by_label["teacher/seed0"].ref()
    graded = rows(store, by_label["teacher/teacher/seed0: grade"], "results.jsonl")
    right = {row["response"] for row in graded if row["reward"] == 1}
    traces = rows(store, by_label["teacher/teacher/seed0: select"], "traces.jsonl")
    assert 0 < len(traces) < len(graded)
    assert {row["trace"] for row in traces} <= right
    assert "taught by teacher" in (store.path(by_label["report"].ref()) / "report.html").read_text(encoding="utf-8")


def rows(store: Store, manifest: Manifest, name: str) -> list[dict[str, object]]:
    """The records of one file of an artifact."""
    lines = (store.path(manifest.ref()) / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
