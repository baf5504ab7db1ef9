"""Stages in another interpreter: here the same one, in a process of its own."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from child_code import run_in_children
from waiting import wait_until

from alignment_core import stage_server
from alignment_core.config import ArithmeticConfig, DataConfig, SamplingConfig
from alignment_core.config_base import Config
from alignment_core.events import Event
from alignment_core.failures import HostError, MemberError
from alignment_core.fingerprint import SAMPLERS, stage_fingerprint
from alignment_core.interruption import Interrupted
from alignment_core.operation import STAGE_PYTHON
from alignment_core.stage import StageSpec, make_spec
from alignment_core.stage_config import FilterStage, PrepareStage, SampleStage
from alignment_core.stage_server import run_elsewhere
from alignment_core.store import Store
from flows.doctor import vllm_line

VLLM = SampleStage(sampling=SamplingConfig(backend="vllm"), split="train", seed=0).model_dump(mode="json")
PLAIN = SampleStage(sampling=SamplingConfig(), split="train", seed=0).model_dump(mode="json")


def prepare(seed: int = 0, train: int = 8, max_total: int = 50) -> StageSpec:
    data = DataConfig(arithmetic=ArithmeticConfig(max_total=max_total, train=train, dev=4, test=4), dev_size=4)
    return make_spec("prepare", PrepareStage(data=data, template="Q: {question} <think>", seed=seed), {}, "prepare")


IMPOSSIBLE = prepare(max_total=2)
"""It asks for what there is none of: a member's own fault."""


@pytest.fixture(autouse=True)
def _servers_end() -> Iterator[None]:
    yield
    stage_server.close_servers()


def pid_of(store: Store) -> int:
    return stage_server._servers[sys.executable, str(store.root)]._process.pid


def test_one_process_runs_stage_after_stage_and_tells_what_they_record(tmp_path: Path) -> None:
    store, heard = Store(tmp_path), list[Event]()
    first = run_elsewhere(sys.executable, store, prepare(), heard.append, {"study": "s"}, "first run")
    pid = pid_of(store)
    second = run_elsewhere(sys.executable, store, prepare(1))
    again = run_elsewhere(sys.executable, store, prepare())
    assert (first.how, first.reason, second.how, again.how) == ("ran", "first run", "ran", "cached")
    assert again.ref == first.ref != second.ref
    assert pid_of(store) == pid != os.getpid()
    assert store.manifest("prepare", first.ref.key).producer.annotations == {"study": "s"}
    assert heard


def test_a_failure_is_told_and_the_next_stage_gets_a_new_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    broken = prepare().model_copy(update={"key": "0" * 64})
    with pytest.raises(HostError, match=r"^prepare was made elsewhere"):
        run_elsewhere(sys.executable, store, broken)
    with pytest.raises(ValueError, match=r"^no train problem of 3 steps within arithmetic\.max_total 2: raise it"):
        run_elsewhere(sys.executable, store, IMPOSSIBLE)
    assert run_elsewhere(sys.executable, store, prepare()).how == "ran"


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        ("MemberError('other weights')", MemberError, "^other weights$"),
        ("FileNotFoundError('gone')", HostError, "^gone$"),
        ("TypeError('a bug')", RuntimeError, r"(?s)^Traceback.*TypeError: a bug$"),
    ],
)
def test_a_failure_arrives_by_its_kind(
    raised: str, kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = "from alignment_core.failures import MemberError\nfrom alignment_core.stages import prepare\n"
    fails = f"def run(*_):\n    raise {raised}\nprepare.run = run\n"
    run_in_children(tmp_path, monkeypatch, imports + fails)
    with pytest.raises(kind, match=words) as caught:
        run_elsewhere(sys.executable, Store(tmp_path), prepare())
    assert type(caught.value) is kind


def test_a_killed_process_is_told_and_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_elsewhere(sys.executable, store, prepare())
    server = stage_server._servers[sys.executable, str(store.root)]
    os.kill(pid_of(store), signal.SIGSTOP)

    def kill(*_: object) -> None:
        os.kill(server._process.pid, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.alarm(1)
    try:
        with pytest.raises(MemberError, match="ended with code -9: it was killed, often for lack of memory"):
            run_elsewhere(sys.executable, store, prepare(1))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert run_elsewhere(sys.executable, store, prepare(1)).how == "ran"


def test_sigterm_reaches_the_process_and_ends_both(tmp_path: Path) -> None:
    store = Store(tmp_path)
    long = prepare(train=200_000)

    def stop() -> None:
        wait_until((tmp_path / ".work" / f"prepare-{long.key}").exists, "the stage at work")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what is late would end pytest
    try:
        Thread(target=stop, daemon=True).start()
        with pytest.raises(Interrupted, match="SIGTERM"):
            run_elsewhere(sys.executable, store, long)
    finally:
        signal.signal(signal.SIGTERM, before)
    server = stage_server._servers[sys.executable, str(store.root)]
    assert not server.alive
    assert store.lookup("prepare", long.key).ref is None
    assert run_elsewhere(sys.executable, store, prepare()).how == "ran"


def test_a_key_follows_the_sampler_that_its_settings_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, vllm = stage_fingerprint("sample", PLAIN), stage_fingerprint("sample", VLLM)
    assert SAMPLERS["transformers"] in plain.definitions
    assert SAMPLERS["vllm"] not in plain.definitions
    assert SAMPLERS["vllm"] in vllm.definitions
    assert SAMPLERS["transformers"] not in vllm.definitions
    assert ("vllm" in plain.versions, "vllm" in vllm.versions) == (False, True)
    monkeypatch.setenv(STAGE_PYTHON, sys.executable)
    assert stage_fingerprint("sample", PLAIN) == plain
    assert stage_fingerprint("sample", VLLM) == vllm


def test_an_interpreter_that_cannot_run_stages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STAGE_PYTHON, str(tmp_path / "python"))
    with pytest.raises(HostError, match=r"ALIGNFLOW_STAGE_PYTHON=.*cannot run stages.*or unset it"):
        stage_fingerprint("sample", VLLM)


def test_versions_are_those_of_the_interpreter_that_runs_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "python"
    other.write_text(
        "#!/bin/sh\necho '" + '{"torch": "9.9", "transformers": "8.8", "vllm": "7.7", "tokenizers": "1"}' + "'\n"
    )
    other.chmod(0o755)
    monkeypatch.setenv(STAGE_PYTHON, str(other))
    assert stage_fingerprint("sample", VLLM).versions["vllm"] == "7.7"
    assert stage_fingerprint("sample", PLAIN).versions.get("torch") != "9.9"
    assert stage_fingerprint("filter", settings_of(FilterStage())).versions.get("torch") != "9.9"


def test_the_doctor_says_where_vllm_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STAGE_PYTHON, raising=False)
    if importlib.util.find_spec("vllm") is None:
        assert vllm_line() == "not installed: `python3 -m flows.bootstrap install gpu` installs it"
    monkeypatch.setenv(STAGE_PYTHON, sys.executable)
    assert f" in {sys.executable}" in vllm_line()
    monkeypatch.setenv(STAGE_PYTHON, str(tmp_path))
    assert "cannot run stages" in vllm_line()


def settings_of(config: Config) -> dict[str, object]:
    return config.model_dump(mode="json")
