"""Who computes a stage among hosts: numbers, beats, takeovers, and what a superseded attempt may still do."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from counting_stage import GATE, expected, spec
from hypothesis import given
from hypothesis import strategies as st
from kill_root import ARITHMETIC, record, sft_spec
from shared_hosts import ENVIRONMENT, end_hosts, kill, s3_server, shared, start_host, write_spec
from waiting import matching, wait_until

from alignment_core import attempts
from alignment_core.attempts import Attempt, Stillness, Superseded, attempting, numbers, place_of, under_way
from alignment_core.config import DataConfig, ScratchModelConfig
from alignment_core.events import read_events
from alignment_core.prompts import read_template
from alignment_core.remote import RemoteFolder, StoreRefused, StoreUnreachable
from alignment_core.shared_checkpoints import shared_checkpoints
from alignment_core.stage import StageSpec, make_spec, run_stage
from alignment_core.stage_config import PrepareStage, PretrainStage
from alignment_core.store import Store
from alignment_core.store_access import open_store_folder

LEASE = 2.0
SHORT = {"ALIGNFLOW_LEASE_SECONDS": str(LEASE), "ALIGNFLOW_UPLOAD_SECONDS": "0"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(autouse=True)
def no_host_stays() -> Iterator[None]:
    yield
    end_hosts()


@pytest.fixture(params=["posix", pytest.param("s3", marks=pytest.mark.slow)])
def hosts_url(request: pytest.FixtureRequest) -> str:
    """The same for tests of whole hosts, on S3 among the slow ones."""
    return make_url(request)


@pytest.fixture(params=["posix", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty shared store."""
    return make_url(request)


def make_url(request: pytest.FixtureRequest) -> str:
    tmp_path, monkeypatch = request.getfixturevalue("tmp_path"), request.getfixturevalue("monkeypatch")
    if request.param == "posix":
        return str(tmp_path / "shared")
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": request.getfixturevalue("s3")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://alignflow/{tmp_path.name}"


def make_root(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def no_wait(text: str) -> None:
    raise AssertionError(f"nobody was to be waited for: {text}")


# Numbers


CLAIM = """
import sys, time
from alignment_core.attempts import _claim
from alignment_core.remote import RemoteFolder
remote = RemoteFolder(sys.argv[1])
remote.create("warm-up-" + sys.argv[2], b"")
print("ready", flush=True)
sys.stdin.readline()
print(sum(_claim(remote, "race-x", number, "") * 10**number for number in range(4)), flush=True)
"""


def test_a_number_is_taken_by_one_process_alone(hosts_url: str) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, hosts_url, str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for index in range(5)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [int(racer.communicate()[0]) for racer in racers]
    assert sum(won) == 1111  # each of the numbers 0 to 3 once


def test_each_attempt_has_a_higher_number_and_older_ones_are_forgotten(url: str, tmp_path: Path) -> None:
    remote, root = RemoteFolder(url), make_root(tmp_path, "a")
    taken = []
    for _ in range(4):
        with attempting(remote, "demo-k", root, no_wait) as attempt:
            taken.append(attempt.number)
            attempt.check()
    assert taken == [1, 2, 3, 4]
    assert numbers(remote, "demo-k") == [3, 4]
    assert not list(under_way(remote))


def test_a_service_that_ignores_the_condition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteFolder(str(tmp_path / "shared"))
    monkeypatch.setattr(remote, "_create", lambda _name, _content: True)
    with pytest.raises(StoreRefused, match="no exclusive create"):
        remote.create("a", b"1")
    assert not remote.children("a")


def test_a_client_that_tries_again_recognises_its_own_file(url: str) -> None:
    remote = RemoteFolder(url)
    assert remote.create("one", b"mine")
    assert remote.create("one", b"mine")
    assert not remote.create("one", b"another's")
    assert remote.read("one") == b"mine"


# Stillness


LOOKS = st.lists(st.tuples(st.floats(0, 100), st.sampled_from([b"", b"1", b"2"])), max_size=40)


@given(LOOKS)
def test_only_a_beat_that_was_seen_to_stand_still_for_the_lease_is_dead(looks: list[tuple[float, bytes]]) -> None:
    stillness, now, longest = Stillness(60.0), 0.0, 3 * 5.0
    since: list[tuple[float, bytes]] = []
    for gap, beat in looks:
        now += gap
        since = [*since, (now, beat)] if since and since[-1][1] == beat else [(now, beat)]
        watched = sum(min(later - sooner, longest) for (sooner, _), (later, _) in pairwise(since))
        assert stillness.seen(beat, now) == (watched >= 60.0)


def test_a_clock_that_jumps_back_and_an_observer_that_slept_count_little() -> None:
    stillness = Stillness(60.0)
    assert not stillness.seen(b"1", 1000.0)
    assert not stillness.seen(b"1", 100_000.0)  # slept a day
    assert not stillness.seen(b"1", 5.0)  # and woke in the past
    assert not stillness.seen(b"2", 6.0)


# Leases


def test_a_second_attempt_waits_while_the_first_lives_and_says_for_whom(url: str, tmp_path: Path) -> None:
    remote, told = RemoteFolder(url), list[str]()
    with attempting(remote, "demo-k", make_root(tmp_path, "a"), no_wait, lease=1.0) as first:
        entered = threading.Event()
        second: list[int] = []

        def wait() -> None:
            with attempting(RemoteFolder(url), "demo-k", make_root(tmp_path, "b"), told.append, lease=1.0) as attempt:
                second.append(attempt.number)
            entered.set()

        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(2.5)  # two and a half leases
        (one,) = under_way(remote)
        assert (one.holder.number, one.beat is not None and one.beat.state) == (1, "working")
        first.check()
    assert entered.wait(60)
    thread.join()
    assert second == [2]
    assert told == [
        f"waits for process {os.getpid()} on {os.uname().nodename} (attempt 1), which computes the same stage"
    ]


def test_a_silent_attempt_is_taken_over_after_the_lease_and_hears_of_it(url: str, tmp_path: Path) -> None:
    remote, told = RemoteFolder(url), list[str]()
    assert attempts._claim(remote, "demo-k", 1, place_of(make_root(tmp_path, "a")))
    silent = Attempt(remote, "demo-k", 1, 1.0)  # never begins to beat
    silent.check()
    began = time.monotonic()
    with attempting(remote, "demo-k", make_root(tmp_path, "b"), told.append, lease=1.0) as second:
        assert time.monotonic() - began >= 1.0
        assert "takes over from process" in told[-1]
        second.check()
        with pytest.raises(Superseded, match="attempt 2 computes demo/k now"):
            silent.check()
        with pytest.raises(Superseded):
            silent.at_boundary()  # known now, without asking


def test_the_same_root_need_not_wait_for_its_own_dead(url: str, tmp_path: Path) -> None:
    remote, root = RemoteFolder(url), make_root(tmp_path, "a")
    assert attempts._claim(remote, "demo-k", 1, place_of(root))
    began = time.monotonic()
    with attempting(remote, "demo-k", root, no_wait, lease=60.0) as second:
        assert second.number == 2
    assert time.monotonic() - began < 10


def test_an_outage_for_all_takes_nobody_s_stage(tmp_path: Path) -> None:
    """While neither can reach the store the first cannot beat, and the second must not count that against it."""
    folder, away = tmp_path / "shared", tmp_path / "away"
    remote, told = RemoteFolder(str(folder)), list[str]()
    with attempting(remote, "demo-k", make_root(tmp_path, "a"), no_wait, lease=1.0) as first:
        done = threading.Event()

        def wait() -> None:
            with attempting(RemoteFolder(str(folder)), "demo-k", tmp_path / "b", told.append, lease=1.0):
                done.set()

        make_root(tmp_path, "b")
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: told, "the second waiting")
        folder.rename(away)
        with pytest.raises(StoreUnreachable, match="is not there"):
            first.check()
        time.sleep(2.5)
        away.rename(folder)
        assert not done.wait(1.0)
        first.check()
    assert done.wait(60)
    thread.join()


def test_a_step_after_a_long_silence_asks_before_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ANSWER_SECONDS", 60.0)
    remote = RemoteFolder(str(tmp_path / "shared"))
    with attempting(remote, "demo-k", make_root(tmp_path, "a"), no_wait, lease=600.0) as attempt:
        wait_until(lambda: attempt._answered.is_set(), "the first beat")
        assert attempts._claim(remote, "demo-k", 2, "elsewhere")
        attempt.at_boundary()  # its last look is younger than the lease
        real = time.clock_gettime
        monkeypatch.setattr(attempts.time, "clock_gettime", lambda clock: real(clock) + 601.0)  # the host slept
        with pytest.raises(Superseded):
            attempt.at_boundary()


# Whole hosts: processes with roots of their own


def host(url: str, root: Path, steps: int, seconds: float, environment: dict[str, str] | None = None) -> Any:
    arguments = [str(root), str(steps), str(seconds)]
    return start_host("counting_stage", arguments, url, {**SHORT, **(environment or {})})


def uploaded(url: str, steps: int) -> int:
    made = spec(steps)
    return max((one.step for one in shared_checkpoints(RemoteFolder(url), f"counting-{made.key}")), default=0)


def points(url: str, root: Path, steps: int) -> list[int]:
    """Steps of the points of the published record."""
    store = shared(url, root)
    found = store.lookup("counting", spec(steps).key)
    assert found.ref is not None
    assert (store.path(found.ref) / "result.txt").read_text() == expected(steps)
    return [event.step for event in read_events(store.path(found.ref)) if event.kind == "point"]


def test_a_host_that_is_lost_is_gone_on_from_by_another(hosts_url: str, tmp_path: Path) -> None:
    first = host(hosts_url, tmp_path / "a", 40, 0.1, {GATE: str(tmp_path / "never")})
    wait_until(lambda: uploaded(hosts_url, 40) >= 3, "an upload", first)
    kill(first)
    shutil.rmtree(tmp_path / "a")
    second = host(hosts_url, tmp_path / "b", 40, 0.0)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert '"how":"resumed"' in said
    assert "takes over from process" in said
    resumed = int(said.split("say goes on from step ")[1].split(",")[0])
    assert resumed >= 3
    assert points(hosts_url, tmp_path / "c", 40) == list(range(1, 41))
    remote = RemoteFolder(hosts_url)
    assert not remote.children(f".work/counting-{spec(40).key}")


def test_hosts_that_ask_at_once_compute_once(hosts_url: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hosts = [host(hosts_url, tmp_path / name, 10, 0.0, {GATE: str(gate)}) for name in "abc"]
    wait_until(lambda: len(list(tmp_path.glob("gate.*"))) == 2, "two hosts that wait for the third")
    gate.touch()
    said = [each.communicate()[0] for each in hosts]
    assert [each.returncode for each in hosts] == [0, 0, 0], said
    assert sorted(text.count('"how":"ran"') for text in said) == [0, 0, 1], said
    assert sum("waits for process" in text for text in said) == 2, said


def points_at_home(root: Path) -> list[str]:
    """Points in the record of the stage under way."""
    (record_file,) = root.glob(".work/*/output/record/events.jsonl")
    return [line for line in record_file.read_text().splitlines() if '"point"' in line]


def test_a_host_that_was_stopped_past_its_lease_harms_nothing(hosts_url: str, tmp_path: Path) -> None:
    first = host(hosts_url, tmp_path / "a", 40, 0.1)
    wait_until(lambda: uploaded(hosts_url, 40) >= 2, "an upload", first)
    first.send_signal(signal.SIGSTOP)
    second = host(hosts_url, tmp_path / "b", 40, 0.1)
    wait_until(lambda: max(numbers(RemoteFolder(hosts_url), f"counting-{spec(40).key}")) == 2, "the takeover", second)
    before = uploaded(hosts_url, 40)
    recorded = points_at_home(tmp_path / "a")
    first.send_signal(signal.SIGCONT)
    said = first.communicate()[0]
    assert first.returncode == 1
    assert len(points_at_home(tmp_path / "a")) <= len(recorded) + 1  # it asks at its first step
    assert "Superseded: attempt 2 computes counting/" in said.splitlines()[-1]
    reader = shared(hosts_url, tmp_path / "d")  # the second may have published already, and its checkpoints are gone
    assert uploaded(hosts_url, 40) >= before or reader.lookup("counting", spec(40).key).ref
    assert not (tmp_path / "a" / "counting").exists()
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert '"how":"resumed"' in said
    assert points(hosts_url, tmp_path / "c", 40) == list(range(1, 41))
    again = host(hosts_url, tmp_path / "a", 40, 0.0)
    assert '"how":"cached"' in again.communicate()[0]
    assert not list((tmp_path / "a" / ".work").iterdir())


def test_sigterm_uploads_the_last_checkpoint_and_lets_the_next_in_at_once(hosts_url: str, tmp_path: Path) -> None:
    never = {"ALIGNFLOW_UPLOAD_SECONDS": "1000", "ALIGNFLOW_LEASE_SECONDS": "60"}
    first = host(hosts_url, tmp_path / "a", 100, 0.05, never)
    wait_until(lambda: matching(tmp_path / "a", ".work/*/checkpoints/0*"), "a checkpoint", first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate()[0]
    assert first.returncode == 143, said
    last = max(int(line.split()[1]) for line in said.splitlines() if line.startswith("checkpoint "))
    assert uploaded(hosts_url, 100) == last
    second = host(hosts_url, tmp_path / "b", 100, 0.0, never)
    said = second.communicate()[0]
    assert f"say goes on from step {last}, which another attempt uploaded" in said
    assert "waits for process" not in said
    assert "takes over" not in said
    assert points(hosts_url, tmp_path / "c", 100) == list(range(1, 101))


@pytest.mark.slow
def test_the_further_of_a_local_and_a_shared_checkpoint_wins(tmp_path: Path) -> None:
    url, endless = str(tmp_path / "shared"), {GATE: str(tmp_path / "never")}
    first = host(url, tmp_path / "a", 200, 0.1, endless)
    wait_until(lambda: uploaded(url, 200) >= 2, "an upload", first)
    kill(first)
    at_home = max(int(path.name) for path in (tmp_path / "a").glob(".work/*/checkpoints/0*"))
    again = host(
        url, tmp_path / "a", 200, 0.1, endless
    )  # the same root: no lease to wait for, and its own is the furthest
    wait_until(lambda: uploaded(url, 200) >= at_home + 2, "a further upload", again)
    kill(again)
    before = max(int(path.name) for path in (tmp_path / "a").glob(".work/*/checkpoints/0*"))
    other = host(url, tmp_path / "b", 200, 0.1, endless)
    wait_until(lambda: uploaded(url, 200) > before, "the other host's upload", other)
    kill(other)
    further = uploaded(url, 200)
    home = host(url, tmp_path / "a", 200, 0.0)
    said = home.communicate()[0]
    assert home.returncode == 0, said
    assert f"say goes on from step {further}, which another attempt uploaded" in said
    assert points(url, tmp_path / "c", 200) == list(range(1, 201))


@pytest.mark.slow
def test_training_goes_on_through_an_outage_and_shares_afterwards(tmp_path: Path) -> None:
    folder, away = tmp_path / "shared", tmp_path / "away"
    first = host(str(folder), tmp_path / "a", 50, 0.1)
    wait_until(lambda: uploaded(str(folder), 50) >= 1, "an upload", first)
    folder.rename(away)
    wait_until(lambda: matching(tmp_path / "a", "counting/*/manifest.json"), "the local artifact", first)
    time.sleep(0.5)
    away.rename(folder)
    said = first.communicate()[0]
    assert first.returncode == 0, said
    assert "the stage goes on, its checkpoint is uploaded later" in said
    assert points(str(folder), tmp_path / "b", 50) == list(range(1, 51))


def test_an_outage_beyond_patience_is_an_error_and_the_next_run_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away, gate = tmp_path / "shared", tmp_path / "away", tmp_path / "gate"
    first = host(str(folder), tmp_path / "a", 8, 0.0, {"ALIGNFLOW_STORE_PATIENCE": "1", GATE: str(gate)})
    wait_until(lambda: matching(tmp_path / "a", ".work/*/checkpoints/0*"), "a checkpoint", first)
    folder.rename(away)
    gate.touch()
    said = first.communicate()[0]
    assert first.returncode == 1
    assert "is finished and whole in" in said
    assert "The next run that asks for it uploads it" in said
    away.rename(folder)
    second = host(str(folder), tmp_path / "a", 8, 0.0)
    assert '"how":"cached"' in second.communicate()[0]
    monkeypatch.setenv("ALIGNFLOW_STORE", str(folder))
    (tmp_path / "b").mkdir()
    assert open_store_folder(tmp_path / "b").lookup("counting", spec(8).key).reason == "in the shared store"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_goes_on_on_another_host_and_ends_with_equal_weights(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3}.items():
        monkeypatch.setenv(name, value)
    url = f"s3://alignflow/{tmp_path.name}"
    alone = Store(tmp_path / "alone")
    made = training(alone)
    undisturbed = run_stage(alone, made).ref
    base = shared(url, alone.root)
    assert base.shared is not None
    for ref in made.inputs.values():
        base.shared.share_if_absent(ref)
    file = write_spec(tmp_path / "sft.json", made)
    quick = {**SHORT, "ALIGNFLOW_CHECKPOINT_SECONDS": "0", "ALIGNFLOW_LEASE_SECONDS": "5"}
    remote, work = RemoteFolder(url), f"{made.stage}-{made.key}"
    first = start_host("alignment_core.stage_process", [file, str(tmp_path / "a")], url, quick)
    wait_until(lambda: max((one.step for one in shared_checkpoints(remote, work)), default=0) >= 2, "an upload", first)
    kill(first)
    shutil.rmtree(tmp_path / "a")
    second = start_host("alignment_core.stage_process", [file, str(tmp_path / "b")], url, quick)
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert '"how":"resumed"' in said
    there = shared(url, tmp_path / "b")
    assert there.lookup(made.stage, made.key).ref == undisturbed  # the digest covers every byte of the weights
    assert record(there, undisturbed) == record(alone, undisturbed)


def training(store: Store) -> StageSpec:
    """A training stage of 48 steps, its inputs made: a model so small and so ignorant that this takes seconds."""
    template, plain = read_template("tiny"), read_template("plain")
    data = DataConfig(kind="arithmetic", arithmetic=ARITHMETIC)
    problems = run_stage(
        store, make_spec("prepare", PrepareStage(data=data, template=template, seed=0), {}, "prepare")
    ).ref
    shape = ScratchModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, documents=64)
    pretraining = PretrainStage(model=shape, arithmetic=ARITHMETIC, template=template, plain_template=plain, seed=0)
    base = run_stage(store, make_spec("pretrain", pretraining, {}, "base")).ref
    return sft_spec(base, problems, epochs=8)


def test_a_root_in_the_place_of_a_deleted_one_is_another(tmp_path: Path) -> None:
    root = make_root(tmp_path, "a")
    before = place_of(root)
    assert place_of(root) == before
    shutil.rmtree(root)
    assert place_of(make_root(tmp_path, "a")) != before, "even if it was given the same inode"
