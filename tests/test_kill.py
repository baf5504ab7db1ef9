"""Real processes, really killed: whatever the place, the stage goes on and ends as if nothing had been.

Every attempt is a process of its own, forked from a server that has the libraries loaded; `dying_stage` kills
it from inside at an exact place. The table at the end says what each kill cost.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dying_stage
import pytest
from kill_root import checkpoint_steps, event_times, fill_root, record

from alignment_core.records import ArtifactRef
from alignment_core.stage import StageOutcome, StageSpec
from alignment_core.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
HEADER = ("stage", "place", "kills", "what happened", "s to recover", "steps lost", "equal")


@dataclass
class Bench:
    """The finished root, the stages to kill, and how they end undisturbed."""

    origin: Store
    """What the stages start from; copied for every test."""
    store: Store
    """Where they run undisturbed."""
    specs: dict[str, StageSpec]
    folder: Path
    expected: dict[str, ArtifactRef] = field(default_factory=dict)
    rows: list[tuple[object, ...]] = field(default_factory=list)

    def spec_file(self, name: str) -> Path:
        """Where the spec of a stage lies."""
        return self.folder / f"{name}.json"

    def copy(self, folder: Path) -> Store:
        """A root of its own for one test."""
        return Store(shutil.copytree(self.origin.root, folder))

    def undisturbed(self, name: str) -> ArtifactRef:
        """The artifact of a stage that nothing killed, computed by the command itself in a fresh process."""
        if name not in self.expected:
            done = subprocess.run(
                stage_command(self, name, self.store), capture_output=True, text=True, env=ENVIRONMENT
            )
            assert done.returncode == 0, done.stderr
            self.expected[name] = StageOutcome.model_validate_json(done.stdout).ref
        return self.expected[name]

    def is_equal(self, name: str, store: Store, ref: ArtifactRef) -> bool:
        """Whether an artifact has the content and the record of the undisturbed one, and one point per step."""
        expected, found = record(self.store, self.undisturbed(name)), record(store, ref)
        steps = [event[1] for event in found if event[0] == "point"]
        return ref == self.undisturbed(name) and found == expected and len(steps) == len(set(steps))


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Seconds to make; prints the table when the last test is done."""
    folder = tmp_path_factory.mktemp("kill")
    origin = Store(folder / "origin")
    specs = fill_root(origin)
    made = Bench(origin, Store(shutil.copytree(origin.root, folder / "undisturbed")), specs, folder)
    for name, spec in made.specs.items():
        made.spec_file(name).write_text(spec.model_dump_json())
    yield made
    print_table(request, made.rows)


@pytest.fixture(scope="module")
def forks() -> Iterator[multiprocessing.context.ForkServerContext]:
    """A server that forks attempts with torch already loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["alignment_core.stages.sft", "alignment_core.stages.grpo"])
        yield context


def print_table(request: pytest.FixtureRequest, rows: list[tuple[object, ...]]) -> None:
    """Aligned columns, past pytest's capture."""
    texts = [[str(cell) for cell in row] for row in (HEADER, *rows)]
    widths = [max(len(text[column]) for text in texts) for column in range(len(HEADER))]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print()
        for text in texts:
            print("  ".join(cell.ljust(width) for cell, width in zip(text, widths, strict=True)).rstrip())


def stage_command(bench: Bench, name: str, store: Store) -> list[str]:
    """The stage alone, as a user would start it."""
    return [sys.executable, "-m", "alignment_core.stage_process", str(bench.spec_file(name)), str(store.root)]


CASES = [
    (stage, place, kills)
    for place in dying_stage.PLACES
    for stage in ("sft", "grpo")
    for kills in (1, 2)
    if (stage == "grpo" or "rollouts" not in place) and (kills == 1 or "published" not in place)
]


@pytest.mark.parametrize(("name", "place", "kills"), CASES)
def test_sigkill_at_each_place(bench: Bench, forks, tmp_path: Path, name: str, place: str, kills: int) -> None:  # type: ignore[no-untyped-def]
    store, report, lost, died = bench.copy(tmp_path / "store"), tmp_path / "report", 0, -1
    for _ in range(kills):
        assert attempt(forks, place, bench.spec_file(name), store, report) == -signal.SIGKILL
        death = json.loads(report.read_text())
        died = death["died_after_step"] or died
        if not store.lookup(bench.specs[name].stage, bench.specs[name].key).ref:
            lost += died - max(checkpoint_steps(store.root), default=0)
    began = time.time()
    assert attempt(forks, None, bench.spec_file(name), store, report) == 0, report.read_text()
    ended = time.time()
    outcome = StageOutcome.model_validate_json(report.read_text().splitlines()[-1])
    fresh = {step: moment for step, moment in event_times(store, outcome.ref).items() if moment > began}
    recovered = fresh.get(died, min(fresh.values(), default=ended))  # back where it was, or past it if nothing was lost
    equal = bench.is_equal(name, store, outcome.ref)
    bench.rows.append((name, place, kills, outcome.how, f"{recovered - began:.1f}", lost, "yes" if equal else "NO"))
    assert equal
    assert not list(store.root.glob(".work/*/*"))
    assert outcome.how == expected_ending(place)


def expected_ending(place: str) -> str:
    """How the last attempt ends: everything but the two ends of a stage goes on from a checkpoint."""
    return {"before the first checkpoint": "ran", "published, nobody told": "cached"}.get(place, "resumed")


def attempt(forks, place: str | None, spec: Path, store: Store, report: Path) -> int:  # type: ignore[no-untyped-def]
    """Exit code of one attempt in a process of its own."""
    process = forks.Process(target=dying_stage.attempt, args=(place, spec, store.root, report))
    process.start()
    process.join(120)
    return int(process.exitcode)


def test_the_stages_that_are_killed_really_learn(bench: Bench) -> None:
    points = [event for event in record(bench.store, bench.undisturbed("grpo")) if event[0] == "point"]
    assert all(event[4]["train/grad_norm"] > 0 for event in points if event[1] > 0)


def test_sigkill_at_arbitrary_moments(bench: Bench, tmp_path: Path) -> None:
    store, draws, kills = bench.copy(tmp_path / "store"), random.Random(0), 0
    environment = {**ENVIRONMENT, "ALIGNFLOW_CHECKPOINT_SECONDS": "0.3"}
    for _ in range(3):
        process = subprocess.Popen(stage_command(bench, "grpo-long", store), env=environment, stdout=subprocess.PIPE)
        wait_for_progress(store, process)
        time.sleep(draws.uniform(0.0, 1.5))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    outcome, seconds = finish(bench, "grpo-long", store)
    equal = bench.is_equal("grpo-long", store, outcome.ref)
    bench.rows.append(
        ("grpo", "at arbitrary moments", kills, outcome.how, f"{seconds:.1f} (all)", "-", equal_word(equal))
    )
    assert kills == 3
    assert outcome.how == "resumed"
    assert equal


def wait_for_progress(store: Store, process: subprocess.Popen[bytes]) -> int:
    """Wait until the stage has saved further than it had; returns the step."""
    before, began = max(checkpoint_steps(store.root), default=0), time.monotonic()
    while (step := max(checkpoint_steps(store.root), default=0)) <= before:
        assert process.poll() is None, "the stage ended before it was killed"
        assert time.monotonic() - began < 120, "no checkpoint"
        time.sleep(0.02)
    return step


def finish(bench: Bench, name: str, store: Store) -> tuple[StageOutcome, float]:
    """Outcome and seconds of the command that nobody disturbs."""
    began = time.monotonic()
    done = subprocess.run(stage_command(bench, name, store), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return StageOutcome.model_validate_json(done.stdout), time.monotonic() - began


def equal_word(equal: bool) -> str:
    """For the table."""
    return "yes" if equal else "NO"


def test_sigterm_and_ctrl_c_save_at_the_next_step_and_end(bench: Bench, tmp_path: Path) -> None:
    store = bench.copy(tmp_path / "store")
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        environment = {**ENVIRONMENT, "ALIGNFLOW_CHECKPOINT_SECONDS": "0.3"}
        process = subprocess.Popen(
            stage_command(bench, "grpo-long", store), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        saved = wait_for_progress(store, process)
        began = time.monotonic()
        process.send_signal(sent)
        output, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - began
        assert (process.returncode, output) == (code, b""), errors
        *others, kept = checkpoint_steps(store.root)
        assert len(others) <= 1  # the one of the best validation
        assert kept >= saved
        last = errors.decode().splitlines()[-1]
        assert last == f"alignflow: grpo stopped by {sent.name}: saved after step {kept}"
        bench.rows.append(("grpo", sent.name, 1, f"saved, exit {code}", f"{seconds:.1f} (to end)", 0, "-"))
    outcome, seconds = finish(bench, "grpo-long", store)
    equal = bench.is_equal("grpo-long", store, outcome.ref)
    bench.rows.append(("grpo", "SIGTERM, then SIGINT", 2, outcome.how, f"{seconds:.1f} (all)", 0, equal_word(equal)))
    assert equal


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that is quickly full."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a full disk needs a mount of its own, and this user may not mount: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(("where", "room"), [("while checkpointing", 4.5), ("while writing the results", 0.5)])
def test_a_full_disk_is_said_and_costs_nothing_that_was_complete(
    bench: Bench, small_disk: Path, where: str, room: float
) -> None:
    """Room in multiples of the weights: a checkpoint takes three, and the next needs as much beside the last."""
    store = bench.copy(small_disk / "store")
    weights = next(store.root.glob("pretrain/*/model/model.safetensors")).stat().st_size
    ballast = small_disk / "ballast"
    fill_disk(ballast, round(room * weights))
    often = "0" if where == "while checkpointing" else "1000"
    environment = {**ENVIRONMENT, "ALIGNFLOW_CHECKPOINT_SECONDS": often}
    done = subprocess.run(stage_command(bench, "sft", store), capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    (message,) = (line for line in done.stderr.splitlines() if line.startswith("alignflow: "))
    assert f"the disk at {small_disk} is full" in message
    assert "Free space there" in message
    assert "Traceback" not in done.stderr
    assert checkpoint_steps(store.root) == ([1] if where == "while checkpointing" else [])
    assert not list(store.root.glob(".work/*/checkpoints/staging"))
    assert store.lookup("sft", bench.specs["sft"].key).status == "missing"
    ballast.unlink()
    outcome, seconds = finish(bench, "sft", store)
    equal = bench.is_equal("sft", store, outcome.ref)
    bench.rows.append(("sft", f"disk full {where}", 1, outcome.how, f"{seconds:.1f} (all)", "-", equal_word(equal)))
    assert equal


def fill_disk(ballast: Path, room: int) -> None:
    """Leave about `room` bytes."""
    free = shutil.disk_usage(ballast.parent).free
    with ballast.open("wb") as file:
        file.write(b"\0" * (free - room))
