"""`alignflow grade` as people run it: real processes, files good and bad, large ones in little memory."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignment_core.rewards import grade_batch
from flows.grading_rows import MAX_LINE, Keys, parse_row

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from flows.cli import main; main()", "grade"]
MEASURED = (
    "import atexit\n"
    "def peak():\n"
    "    status = open('/proc/self/status').read()\n"
    "    print('peak kB', status.partition('VmHWM:')[2].split()[0])\n"
    "atexit.register(peak)\n"
    "from flows.cli import main; main()"
)
GROWTH_MEGABYTES = 48
"""How much more memory 50 MB of rows may take than half a megabyte: batches on their way, and the allocator's slack."""
TAGGED = "thinking </think> <answer> {} </answer>"


def row(answer: str, truth: Any, **more: Any) -> dict[str, Any]:
    return {"response": TAGGED.replace("{}", answer), "ground_truth": truth, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    return path


def grade(
    *words: object, stdin: bytes | None = None, code: int = 0, command: list[str] = COMMAND
) -> subprocess.CompletedProcess[bytes]:
    """Run the command; its exit code must be `code`."""
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([*command, *map(str, words)], cwd=ROOT, env=environment, input=stdin, capture_output=True)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def counts(done: subprocess.CompletedProcess[bytes]) -> dict[str, int]:
    """The summary table: name -> count."""
    found = re.findall(r"^ *([a-z][a-z ,/]*?) {2,}([\d,]+)", done.stdout.decode(), re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in found}


def graded(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_rows_come_back_in_order_with_their_verdicts(tmp_path: Path) -> None:
    rows = [row(str(n % 7), str(n % 5), id=n) for n in range(700)]
    rows[3]["response"] = "no tags: 3"
    first, second = write(tmp_path / "a.jsonl", rows[:300]), write(tmp_path / "b.jsonl", rows[300:])
    done = grade(first, second, "--out", tmp_path / "graded.jsonl")
    written = graded(tmp_path / "graded.jsonl")
    assert [item["id"] for item in written] == list(range(700))
    grades = grade_batch([item["response"] for item in rows], [item["ground_truth"] for item in rows])
    for item, source, verdict in zip(written, rows, grades, strict=True):
        assert item == {**source, **verdict.model_dump(exclude_none=True)}
    shown = counts(done)
    assert (shown["rows"], shown["formatted"]) == (700, 699)
    assert shown["right"] == sum(verdict.reward == 1 for verdict in grades) > 50
    assert (shown["malformed, left out"], shown["timeouts"], shown["errors"]) == (0, 0, 0)
    assert shown["rows/s"] > 0
    assert done.stderr == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "graded.jsonl"]


def test_malformed_rows_are_named_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    good = json.dumps(row("4", "4")).encode()
    lines = [
        good, b"{", b"[1]", b'{"response": "4"}', b'{"ground_truth": "4"}', b'{"response": 4, "ground_truth": "4"}',
        b'{"response": "4", "ground_truth": null}', b'{"response": "4", "ground_truth": []}',
        b'{"response": "4", "ground_truth": NaN}',
        b'{"response": "4", "ground_truth": true}', b'{"response": "\xff", "ground_truth": "4"}', b"", b"[" * 100_000,
        b'{"response": "4", "ground_truth": ' + b"9" * 5_000 + b"}",
        b'{"response": "' + b"x" * MAX_LINE + b'", "ground_truth": "4"}',
        b'{"response": "4", "ground_truth": [1, {}]}', "4\u2028".encode(), b"\x00", good + b"\r", good,
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    done = grade(path, "--out", tmp_path / "out.jsonl", code=1)
    told = done.stderr.decode().splitlines()
    bad = [number for number, line in enumerate(lines, 1) if line and not line.startswith(good)]
    numbers = [re.match(rf"{re.escape(str(path))}, line (\d+): ", line) for line in told]
    assert [int(found[1]) for found in numbers if found] == bad
    assert all("\n" not in line and len(line) < 400 for line in told)
    assert [item["reward"] for item in graded(tmp_path / "out.jsonl")] == [1.0] * 3
    assert counts(done)["malformed, left out"] == len(bad)
    assert counts(done)["rows"] == 3


def test_many_malformed_rows_are_counted_rather_than_told(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [1, row("4", "4"), *[1] * 249])
    done = grade(path, code=1)
    told = done.stderr.decode().splitlines()
    assert len(told) == 101
    assert "line 1: a number" in told[0]
    assert told[-1] == "... and 150 more malformed rows"


def test_ground_truths_are_texts_numbers_or_lists_under_the_usual_names(tmp_path: Path) -> None:
    rows = [
        {"output": TAGGED.replace("{}", "0.5"), "answer": 0.5},
        {"completion": TAGGED.replace("{}", "12"), "gold": 12},
        {"generation": TAGGED.replace("{}", "7"), "expected_answer": ["6", 7]},
        {"response": TAGGED.replace("{}", r"\ud800"), "ground_truth": "4"},
    ]
    done = grade(write(tmp_path / "rows.jsonl", rows), "--workers", 0, "--out", tmp_path / "out.jsonl")
    assert [item["reward"] for item in graded(tmp_path / "out.jsonl")] == [1.0, 1.0, 1.0, 0.0]
    assert counts(done)["right"] == 3


def test_keys_can_be_named(tmp_path: Path) -> None:
    rows = [{"said": TAGGED.replace("{}", "4"), "wanted": "4", "response": "", "answer": "5"}]
    path = write(tmp_path / "rows.jsonl", rows)
    assert counts(grade(path, "--response-key", "said", "--truth-key", "wanted"))["right"] == 1
    assert counts(grade(path))["right"] == 0
    done = grade(path, "--truth-key", "truth", code=1)
    assert b"no truth: name the key with --truth-key" in done.stderr


def test_a_wrong_key_is_told_once_with_the_keys_that_are_there(tmp_path: Path) -> None:
    few, many = [write(tmp_path / f"{size}.jsonl", [{"said": "4", "answer": "4"}] * size) for size in (3, 5_000)]
    said = "no response or output or completion or generation: name the key with --response-key (the row's keys: "
    for path, beginning in ((few, ""), (many, "alignflow: the first 100 rows cannot be graded; ")):
        done = grade(path, "--out", tmp_path / "out.jsonl", code=1)
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith(f"{beginning}{path}, line 1: {said}said, answer)")
    assert line.endswith(")")
    assert graded(tmp_path / "out.jsonl") == []


def test_the_summary_names_reward_and_mode(tmp_path: Path) -> None:
    done = grade(write(tmp_path / "rows.jsonl", [row("4", "4")]), "--reward", "number")
    assert re.search(r"^ *reward +number *\n *mode +fast *$", done.stdout.decode(), re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"{}"), "is compressed: unpack it"),
        (b'\n [{"response": "4"}]', "is a JSON array: write one object"),
    ],
)
def test_files_that_are_no_lines_of_text_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    good, path = write(tmp_path / "good.jsonl", [row("4", "4")]), tmp_path / "rows"
    path.write_bytes(content)
    for done in (grade(good, path, code=1), grade("-", stdin=content.lstrip(), code=1)):
        (line,) = done.stderr.decode().splitlines()
        assert said in line
        assert done.stdout == b""


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # root may write anywhere but into the kernel's own files
        locked = Path("/proc")
    if not locked.is_dir():
        pytest.skip("this user may write everywhere")
    done = grade(write(tmp_path / "rows.jsonl", [row("4", "4")]), "--out", locked / "out.jsonl", code=1)
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"alignflow: --out {locked / 'out.jsonl'}: ")
    assert line.endswith("give a file in a folder that can be written")


def test_stdin_is_graded_too(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + json.dumps(row("4", "4")).encode() + b"\n\nnonsense\n"
    done = grade("-", "--out", tmp_path / "out.jsonl", stdin=text, code=1)
    assert done.stderr.decode().startswith("stdin, line 3: not JSON")
    assert len(graded(tmp_path / "out.jsonl")) == 1


def test_grading_again_replaces_the_earlier_verdict(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [row("4", "4", reward=0.5, milliseconds=3.0, extracted="9", note="kept")])
    grade(path, "--out", tmp_path / "out.jsonl")
    (item,) = graded(tmp_path / "out.jsonl")
    assert (item["reward"], item["extracted"], item["note"]) == (1.0, "4", "kept")
    assert "milliseconds" not in item


def test_thorough_grading_counts_where_the_modes_differ(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows = [row("4", "4"), row(r"\{2, 1\}", r"\{1, 2\}"), row("9^{9^{9^{9}}}", r"\sqrt{2}"), row("5", "4")]
    done = grade(write(tmp_path / "rows.jsonl", rows), "--mode", "thorough", "--out", tmp_path / "out.jsonl")
    shown = counts(done)
    written = graded(tmp_path / "out.jsonl")
    assert [(item["fast_reward"], item["reward"]) for item in written] == [(1, 1), (0, 1), (0, 0), (0, 0)]
    assert (shown["right"], shown["right by thorough only"], shown["right by fast only"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.jsonl"], "absent.jsonl: no such file"),
        (["-", "-"], "give - once"),
        (["."], "is a folder: give the files in it"),
        (["rows.jsonl", "--out", "-"], "--out -: graded rows are not written to stdout"),
        (["rows.jsonl", "--reward", "r2"], "no reward 'r2': choose one of r1_zero"),
        (["rows.jsonl", "--mode", "slow"], "no mode 'slow'"),
        (["rows.jsonl", "--out", "."], "give the path of a file in a folder that exists"),
        (["rows.jsonl", "--out", "absent/out.jsonl"], "give the path of a file in a folder that exists"),
        (["rows.jsonl", "--out", "rows.jsonl"], "is one of the files to be graded"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_graded(tmp_path: Path, words: list[str], said: str) -> None:
    before = write(tmp_path / "rows.jsonl", [row("4", "4")]).read_bytes()
    placed = [str(tmp_path / word) if word.endswith((".jsonl", ".")) else word for word in words]
    done = grade(*placed, code=1)
    assert said in done.stderr.decode()
    assert done.stderr.decode().startswith("alignflow: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == b""
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_half_written_file(tmp_path: Path, number: int, code: int) -> None:
    (tmp_path / "out.jsonl").write_text("from before\n")
    command = [*COMMAND, "-", "--out", str(tmp_path / "out.jsonl")]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write((json.dumps(row("4", "4")) + "\n").encode() * 2_000)
    process.stdin.flush()
    ends = time.monotonic() + 60
    while not list(tmp_path.glob(".out*.partial")):
        assert time.monotonic() < ends
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(60) == code
    assert process.stderr.read().decode() == "alignflow: interrupted; nothing was written: grade again\n"
    process.stdin.close()
    process.stderr.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "from before\n"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    """50 MB against half a megabyte, both through a child; the difference of the peaks is bounded."""
    line = json.dumps(row("12", "13", thoughts="so " * 3_000)) + "\n"
    peaks = {}
    for megabytes in (0.5, 50):
        path = tmp_path / f"{megabytes}.jsonl"
        with path.open("w") as file:
            for _ in range(int(megabytes * 1e6 / len(line)) + 1):
                file.write(line)
        done = grade(path, "--out", tmp_path / "out.jsonl", command=[sys.executable, "-c", MEASURED, "grade"])
        assert counts(done)["rows"] == path.stat().st_size // len(line)
        assert (tmp_path / "out.jsonl").stat().st_size > path.stat().st_size
        peaks[megabytes] = int(done.stdout.decode().rpartition("peak kB ")[2]) / 1e3
    assert peaks[50] - peaks[0.5] < GROWTH_MEGABYTES, peaks


def test_lines_of_many_megabytes_take_little_memory_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for index in range(6):
            file.write(json.dumps(row("x" * (4_000_000 if index % 2 else MAX_LINE), "4")) + "\n")
    done = grade(path, command=[sys.executable, "-c", MEASURED, "grade"], code=1)
    assert counts(done) | {"rows/s": 0} == counts(done) | {"rows": 3, "malformed, left out": 3, "rows/s": 0}
    if Path("/proc/self/status").exists():
        assert int(done.stdout.decode().rpartition("peak kB ")[2]) / 1e3 < 400


def test_a_row_says_what_is_wrong_with_it() -> None:
    for line, words in (
        (b'{"response": [], "ground_truth": "4"}', "the response is a list, not a text"),
        (b'{"response": "", "answer": {"a": 1}}', "answer holds an object"),
        (b'{"text": ""}', "no response or output or completion or generation: name the key with --response-key"),
        (b"3", "a number, not an object"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            parse_row(line, Keys())
