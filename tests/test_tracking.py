"""MLflow as a view of the stages' own records: nothing lost by a kill or an outage, nothing doubled by a rerun."""

import json
import time
from pathlib import Path

import pytest

from alignment_core.events import EVENTS, Event
from alignment_core.manifest import Components
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec
from tasks import tracker as tracker_module
from tasks.mlflow_format import as_params, pending_marker, run_address
from tasks.tracker import Tracker, TrackingError
from tasks.tracking import may_pass, tracking_uri


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One root for the module: a fresh MLflow database takes seconds."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


def make_spec(key: str) -> StageSpec:
    components = Components(stage="sft", config={}, inputs={}, code={}, versions={})
    return StageSpec(stage="sft", label=f"sft {key}", config={"epochs": 2}, inputs={}, components=components, key=key)


def make_events(began: float) -> list[Event]:
    points = [Event(kind="point", step=n, time=began + n, metrics={"train/loss": 1 / n}) for n in (1, 2, 3)]
    return [*points, Event(kind="rows", step=3, time=began + 3, name="samples", rows=[{"text": "a"}])]


def make_artifact(folder: Path, events: list[Event]) -> Path:
    (folder / "record").mkdir(parents=True, exist_ok=True)
    lines = "".join(event.model_dump_json(exclude_defaults=True) + "\n" for event in events)
    (folder / "record" / EVENTS).write_text(lines)
    return folder


def track(root: Path, spec: StageSpec, artifact: Path, heard: list[Event], digest: str = "d") -> None:
    """One run of the command: it hears `heard`, then the artifact is there."""
    tracker = Tracker(root, "study", "run", {})
    tracker.stage_started(spec)
    for event in heard:
        tracker.stage_event(spec, event)
    tracker.stage_finished(spec, ArtifactRef(stage="sft", key=spec.key, digest=digest), artifact)
    tracker.study_finished("FINISHED", {}, [], {})
    tracker.close()
    assert not tracker.is_pending(spec.key)


def shown(root: Path, key: str) -> tuple[int, list[tuple[int, int]], int]:
    """Active runs of a key; (step, ms) of its points; rows of its table."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    assert experiment.artifact_location.startswith((root / "mlruns").as_uri())
    runs = client.search_runs([experiment.experiment_id], f"tags.`alignflow.stage_key` = '{key}'")
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    table = Path(client.download_artifacts(runs[0].info.run_id, "samples.json")).read_text()
    assert runs[0].info.status == "FINISHED"
    return len(runs), [(point.step, point.timestamp) for point in history], len(json.loads(table)["data"])


def test_a_record_that_a_kill_kept_from_mlflow_is_sent_later_and_only_once(root: Path, tmp_path: Path) -> None:
    spec, events = make_spec("killed"), make_events(1000.0)
    artifact = make_artifact(tmp_path / "a", events)
    killed = Tracker(root, "study", "run", {})
    killed.stage_started(spec)
    for event in [*events[:2], Event(kind="checkpoint", step=2, time=1002.0)]:
        killed.stage_event(spec, event)
    killed.close()  # two of three points have arrived; the stage's end never will
    assert killed.is_pending("killed")
    expected = (1, [(1, 1001000), (2, 1002000), (3, 1003000)], 1)
    for _ in range(2):
        track(root, spec, artifact, heard=[])
        assert shown(root, "killed") == expected


def test_a_stage_computed_anew_replaces_its_points(root: Path, tmp_path: Path) -> None:
    spec, old, new = make_spec("anew"), make_events(1000.0), make_events(4_000_000_000.0)
    track(root, spec, make_artifact(tmp_path / "a", old), heard=old)
    track(root, spec, make_artifact(tmp_path / "b", new), heard=new, digest="e")
    assert shown(root, "anew") == (1, [(n, (4_000_000_000 + n) * 1000) for n in (1, 2, 3)], 1)


def test_a_resumed_stage_keeps_its_run(root: Path, tmp_path: Path) -> None:
    spec, events = make_spec("resumed"), make_events(1000.0)
    broken = Tracker(root, "study", "run", {})
    broken.stage_started(spec)
    for event in [events[0], Event(kind="checkpoint", step=1, time=1001.0)]:
        broken.stage_event(spec, event)
    broken.stage_failed(spec)
    broken.close()
    track(root, spec, make_artifact(tmp_path / "a", events), heard=events)
    assert shown(root, "resumed") == (1, [(1, 1001000), (2, 1002000), (3, 1003000)], 1)


def test_points_that_only_a_lost_host_had_are_replaced_by_those_computed_again(root: Path, tmp_path: Path) -> None:
    spec, old, new = make_spec("host-lost"), make_events(1000.0), make_events(2000.0)
    lost = Tracker(root, "study", "run", {})
    lost.stage_started(spec)
    for event in [*old[:2], Event(kind="checkpoint", step=2, time=1002.0)]:
        lost.stage_event(spec, event)
    lost.close()
    replayed, again = old[:1], new[1:]  # the checkpoint of step 1 was uploaded, that of step 2 was not
    heard = [*replayed, Event(kind="checkpoint", step=1, time=2001.5), *again]
    track(root, spec, make_artifact(tmp_path / "a", [*replayed, *again]), heard=heard)
    assert shown(root, "host-lost") == (1, [(1, 1001000), (2, 2002000), (3, 2003000)], 1)


def test_an_outage_is_told_at_the_end_and_leaves_the_stage_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("ALIGNFLOW_MLFLOW_WAIT", "1")
    tracker = Tracker(tmp_path, "study", "run", {})
    tracker.stage_started(make_spec("lost"))
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 could not be written"):
        tracker.close()
    assert pending_marker(tmp_path, "lost").exists()


class Scripted:
    """A stand-in for the session: each job's errors in order, then success; notes what was done."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.done = list(errors), 0

    def job(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.done += 1


class Busy(Exception):
    error_code = "TEMPORARILY_UNAVAILABLE"


class Refused(Exception):
    error_code = "INVALID_PARAMETER_VALUE"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "DELAYS", (0.01, 0.02))


@pytest.mark.usefixtures("impatient")
def test_what_mlflow_did_not_take_is_sent_again_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "alignflow")
    tracker = Tracker(tmp_path, "study", "run", {})
    first, second = Scripted(ConnectionError("http://a:pw@h: refused"), Busy("locked"), Busy("locked")), Scripted()
    order: list[str] = []
    for name, scripted in (("first", first), ("second", second)):
        tracker._put(scripted.job)
        tracker._put(lambda name=name: order.append(name))
    tracker.close()
    assert (first.done, second.done, order) == (1, 1, ["first", "second"])
    assert "MLflow does not answer (http://***@h: refused): training goes on" in caplog.text
    assert "answers again" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_what_mlflow_refuses_is_not_sent_again(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "study", "run", {})
    refused, later = Scripted(Refused("no such metric"), Refused("again")), Scripted()
    tracker._put(refused.job)
    tracker._put(later.job)
    with pytest.raises(TrackingError, match="no such metric") as caught:
        tracker.close()
    assert (len(refused.errors), later.done) == (1, 0)
    assert caught.value.__cause__ is None  # its text, and that of what lies behind it, is not ours to show


@pytest.mark.usefixtures("impatient")
def test_an_outage_is_waited_out_while_training_and_not_for_ever_at_the_end(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "study", "run", {})
    outage = Scripted(*[ConnectionError("refused") for _ in range(100_000)])
    tracker._put(outage.job)
    time.sleep(0.3)
    assert tracker._error is None  # nobody is closing: no patience is lost
    began = time.monotonic()
    with pytest.raises(TrackingError, match="refused"):
        tracker.close(patience=0.2)
    assert 0.1 < time.monotonic() - began < 60


def test_a_wrong_patience_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_MLFLOW_WAIT", "soon")
    with pytest.raises(ValueError, match=r"ALIGNFLOW_MLFLOW_WAIT='soon' is no number of seconds: set e\.g\. 120"):
        Tracker(tmp_path, "study", "run", {})


def test_which_errors_may_pass() -> None:
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

    def answered(code: int) -> Exception:
        response = requests.Response()
        response.status_code = code
        return requests.HTTPError("x", response=response)

    passing = [
        requests.ConnectionError("x"),
        answered(503),
        answered(429),
        MlflowException("x", TEMPORARILY_UNAVAILABLE),
    ]
    lasting = [
        answered(401),
        answered(403),
        MlflowException("x", INVALID_PARAMETER_VALUE),
        KeyError("x"),
        PermissionError(13),
    ]
    assert [may_pass(error) for error in [*passing, *lasting]] == [True] * 4 + [False] * 5


def test_long_params_are_cut_with_a_word_and_secrets_hidden() -> None:
    params = as_params({"a": {"b": "x" * 7000}, "c": "s3://k:v@b", "d": [1, 2]})
    assert (params["c"], params["d"], len(params["a.b"])) == ("s3://***@b", "[1, 2]", 6000)
    assert params["a.b"].endswith("x … (cut: the store has all of it)")


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://ann:pw@host:5000/", "http://host:5000/#/experiments/3/runs/abc"),
        ("https://host/mlflow", "https://host/mlflow/#/experiments/3/runs/abc"),
        ("sqlite:////x/mlflow.db", ""),
        ("postgresql://u:p@h/db", ""),
    ],
)
def test_a_run_has_a_page_on_a_server(uri: str, page: str) -> None:
    assert run_address(uri, "3", "abc") == page
