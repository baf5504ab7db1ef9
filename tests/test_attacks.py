"""The corpus of attacks against the grader: verdict, time, memory, nothing executed, no timer touched.

python -m pytest tests/test_attacks.py            # in process and in a child, fast mode
python -m pytest -m slow tests/test_attacks.py    # thorough mode
"""

import ast
import gc
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from attack_kit import TAGGED, Attack
from attacks import CANARY_MODULE, CANARY_VARIABLE, attacks, payloads_for
from evil_strings import FAST, THOROUGH, expressions, grading_rooms, pumps, regex_calls

from alignment_core.grading import MAX_SYMBOLIC
from alignment_core.records import GradedResponse
from alignment_core.rewards import grade_batch, question_only_reward_fn, r1_zero_reward_fn
from alignment_core.verdicts import GradingMode

CANARY = Path(tempfile.gettempdir()) / f"alignflow-canary-{os.getpid()}"
CORPUS = attacks(CANARY)
FAMILIES = sorted({attack.id.split("-")[0] for attack in CORPUS})
ITEM_SECONDS = 2.0
"""For the verdict on any single attack."""
GROWTH_MEGABYTES = 48
"""What the parent may have grown by after a pass over the corpus that follows another: slack of the allocator."""
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
SIGNALS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
SHORT = {r"[+-]?(?:\d+/0*": 400}
"""Expressions (by their beginning) that are only asked about texts of so many characters."""
THOROUGH_STEP = {"tower": 3, "regex": 8}
"""Every so many members of a large family are asked in thorough mode: a timeout costs seconds."""
COSTLY = {"tower", "grow", "gold"}
"""Families that a computer algebra system may well run away on."""
FUNCTIONS = {"r1_zero": r1_zero_reward_fn, "question_only": question_only_reward_fn}


def family(name: str) -> list[Attack]:
    return [attack for attack in CORPUS if attack.id.split("-")[0] == name]


@pytest.fixture(autouse=True)
def _nothing_executed() -> Iterator[None]:
    """After each test: no payload left a trace."""
    yield
    assert not CANARY.exists()
    assert CANARY_VARIABLE not in os.environ
    assert CANARY_MODULE not in sys.modules


@contextmanager
def timers_untouched() -> Iterator[None]:
    """Timers (pytest's own time limit among them) and handlers are after the block what they were, and tick on."""
    before, began = [signal.getitimer(timer) for timer in TIMERS], time.monotonic()
    handlers = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    elapsed = time.monotonic() - began
    for timer, (left, interval) in zip(TIMERS, before, strict=True):
        now = signal.getitimer(timer)
        assert now[1] == interval
        if timer == signal.ITIMER_REAL and left:
            assert left - now[0] == pytest.approx(elapsed, abs=1.0)
        else:
            assert (now[0] > 0) == (left > 0)


def resident_megabytes() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def alone(attack: Attack) -> tuple[float, float]:
    """(format, reward) by the plain call a trainer makes."""
    if attack.reward in FUNCTIONS:
        rewards = FUNCTIONS[attack.reward](attack.response, attack.truth)
        assert set(rewards) == {"format_reward", "answer_reward", "reward"}
        assert rewards["answer_reward"] == rewards["reward"]
        return rewards["format_reward"], rewards["reward"]
    (grade,) = grade_batch([attack.response], [attack.truth], attack.reward)  # type: ignore[arg-type]
    return grade.format_reward, grade.reward


def complaint(attack: Attack, formatted: float, reward: float, seconds: float, wanted: float | None) -> str | None:
    """What is wrong with a verdict, in words."""
    if reward not in {0.0, 1.0} or formatted != attack.formatted or (wanted is not None and reward != wanted):
        return f"{attack.id}: format {formatted}, reward {reward}; wanted {attack.formatted}, {wanted}"
    return f"{attack.id}: {seconds:.2f} s" if seconds > ITEM_SECONDS else None


def judged_alone(members: list[Attack]) -> list[str]:
    """The complaints about attacks judged one by one in this process."""
    complaints = []
    with timers_untouched():
        for attack in members:
            began = time.thread_time()  # a machine that stands still is no finding
            formatted, reward = alone(attack)
            complaints.append(complaint(attack, formatted, reward, time.thread_time() - began, attack.fast))
    return [text for text in complaints if text]


def judged_together(members: list[Attack], mode: GradingMode) -> tuple[list[str], list[GradedResponse]]:
    """The complaints about attacks judged in one batch by one child, and the grades.

    One that took too long is asked again: it is slow again, unless the machine stood still.
    """
    responses, truths = [attack.response for attack in members], [attack.truth for attack in members]
    with timers_untouched():
        grades = grade_batch(responses, truths, mode=mode, workers=1, timed=True)
        for place, grade in enumerate(grades):
            if grade.status == "timeout" or (grade.milliseconds or 0.0) > 1000 * ITEM_SECONDS:
                (grades[place],) = grade_batch([responses[place]], [truths[place]], mode=mode, workers=1, timed=True)
    complaints = []
    for attack, grade in zip(members, grades, strict=True):
        wanted = attack.fast if mode == "fast" else attack.thorough
        assert grade.milliseconds is not None
        seconds = grade.milliseconds / 1000
        complaints.append(complaint(attack, grade.format_reward, grade.reward, seconds, wanted))
    return [text for text in complaints if text], grades


# The corpus itself


def test_the_corpus_is_large_and_its_attacks_are_distinct() -> None:
    assert len({attack.id for attack in CORPUS}) == len(CORPUS)
    by_hand = [attack for attack in CORPUS if not attack.id.startswith("regex-")]
    said = {
        hashlib.sha256(f"{attack.response}|{attack.gold!r}".encode("utf-8", "surrogatepass")).digest()
        for attack in by_hand
        if not callable(attack.gold)
    }
    assert len(said) >= 300
    assert sum(attack.fast == 0 for attack in by_hand) >= 300


def test_the_payloads_work_where_they_are_evaluated(tmp_path: Path) -> None:
    """So that an untouched canary means something."""
    canary = tmp_path / "canary"
    code = (
        "import os, sys, pathlib\n"
        "canary, payload = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "eval(payload)\n"
        f"print(canary.exists() or {CANARY_VARIABLE!r} in os.environ or {CANARY_MODULE!r} in sys.modules)"
    )
    payloads = payloads_for(canary)
    names = ("import", "path", "open", "eval", "exec", "lambda", "comprehension", "subclasses", "unpickle")
    for name in (*names, "environ", "module"):
        shown = subprocess.run(
            [sys.executable, "-S", "-c", code, str(canary), payloads[name]], capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip().endswith("True"), name
        canary.unlink(missing_ok=True)


# Verdicts and time


@pytest.mark.parametrize("name", FAMILIES)
def test_each_attack_gets_its_verdict_in_process_and_in_time(name: str) -> None:
    assert judged_alone(family(name)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_child_says_the_same_in_time(name: str) -> None:
    members = [attack for attack in family(name) if attack.reward == "r1_zero"]
    complaints, grades = judged_together(members, "fast")
    assert complaints == []
    assert {grade.status for grade in grades} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_thorough_mode_comes_to_a_verdict_in_time(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A timeout is a verdict: 0, and counted. The limit of an item lies below the bound that is asserted here."""
    members = [attack for attack in family(name) if attack.reward == "r1_zero"][:: THOROUGH_STEP.get(name, 1)]
    complaints, grades = judged_together(members, "thorough")
    late = sum(grade.status == "timeout" for grade in grades)
    failed = sum(grade.status == "error" for grade in grades)
    with capsys.disabled():
        slowest = max(grade.milliseconds or 0.0 for grade in grades)
        print(f"\n{name}: {len(grades)} attacks, {late} timeouts, {failed} errors, slowest {slowest:.0f} ms")
    assert complaints == []
    assert all(grade.reward == 0 for grade in grades if grade.status != "ok")
    assert late <= len(grades) / (1 if name in COSTLY else 10)  # what is cheap to decide is decided


@pytest.mark.timeout(120, method="thread")
def test_a_verdict_comes_in_any_thread_and_leaves_a_running_timer_alone() -> None:
    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 600.0)
    members = [attack for name in ("tower", "grow", "code", "tag", "gold") for attack in family(name)]
    asked = [attack for attack in members if attack.reward == "r1_zero"]
    try:
        with ThreadPoolExecutor(1) as threads:
            alone_there = threads.submit(judged_alone, members).result()
            together_there, _ = threads.submit(judged_together, asked, "fast").result()
        left = signal.getitimer(signal.ITIMER_REAL)[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alone_there + together_there == []
    assert fired == []
    assert 400 < left < 600


# Memory


def test_the_parent_does_not_grow() -> None:
    """A pass in process and one through a child, after every fifth attack was judged once."""
    members = [attack for attack in CORPUS if not attack.id.startswith("regex-")]
    judged_alone(members[::5])
    before = resident_megabytes()
    judged_alone(members)
    asked = [attack for attack in members if attack.reward == "r1_zero" and not attack.id.startswith("mega-")]
    for start in range(0, len(asked), 40):
        judged_together(asked[start : start + 40], "fast")
    assert resident_megabytes() - before < GROWTH_MEGABYTES


def test_long_answers_and_golds_are_not_kept() -> None:
    before = resident_megabytes()
    for index in range(80):
        long = f"{index}" + "9" * 1_000_000
        r1_zero_reward_fn(TAGGED.replace("{}", "8" + long), "4")
        r1_zero_reward_fn(TAGGED.replace("{}", "8"), long)
    assert resident_megabytes() - before < GROWTH_MEGABYTES


# Regular expressions


def uses(name: str) -> set[str]:
    """How the grader uses a named expression: search, fullmatch, sub ..."""
    room, _, constant = name.partition(".")
    source = (Path(__file__).parents[1] / "alignment_core" / f"{room}.py").read_text(encoding="utf-8")
    if constant.startswith("line"):
        found = re.findall(r"\bre\.(\w+)\(", source.splitlines()[int(constant.removeprefix("line")) - 1])
    else:
        found = re.findall(rf"\b{constant}\.(search|match|fullmatch|sub|subn|findall|finditer|split)\b", source)
    return set(found) or {"sub", "fullmatch"}


def seconds_of(pattern: re.Pattern[str], use: str, text: str) -> float:
    began = time.thread_time()
    if use in {"sub", "subn"}:
        getattr(pattern, use)("", text)
    elif use == "finditer":
        list(pattern.finditer(text))
    else:
        getattr(pattern, use)(text)
    return time.thread_time() - began


def test_every_regular_expression_of_the_grader_is_attacked() -> None:
    """None hides in a function: what is not a literal at its call is a constant of the module."""
    assert len(expressions()) >= 20
    for module in grading_rooms((*FAST, *THOROUGH)):
        hidden = {
            call.lineno
            for call in regex_calls(module)
            if not isinstance(call.args[0], ast.Constant) and call.col_offset > 0 and call.func.attr == "compile"  # type: ignore[attr-defined]
        }
        lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
        assert [line for line in hidden if not re.match(r"_?[A-Z_]+\b.*= ", lines[line - 1])] == []


@pytest.mark.parametrize("name", sorted(expressions()))
def test_no_regular_expression_backtracks_more_than_its_text_allows(name: str) -> None:
    require_tame(name, expressions()[name])


@pytest.mark.slow
def test_the_regular_expressions_of_the_thorough_mode_are_quick_on_all_it_reads() -> None:
    """It reads no longer answers; half the processor time that a child may take for one."""
    known = expressions()
    for name, pattern in expressions(THOROUGH).items():
        for pump in pumps(pattern) if name not in known else ():
            for use in uses(name):
                assert seconds_of(pattern, use, pump.text(MAX_SYMBOLIC)) < 0.5, (name, use, pump)


def require_tame(name: str, pattern: re.Pattern[str]) -> None:
    """Ten times the text may take some thirty times as long, not a hundred; what is too short to tell passes."""
    longest = next((limit for text, limit in SHORT.items() if pattern.pattern.startswith(text)), 10_000)
    wild = []
    for pump in pumps(pattern):
        for use in uses(name):
            long = seconds_of(pattern, use, pump.text(longest))
            if long > 0.03 and long > 30 * min(seconds_of(pattern, use, pump.text(longest // 10)) for _ in range(3)):
                wild.append((use, pump, long))
    assert wild == [], name


def test_the_evil_strings_are_evil() -> None:
    """The construction finds what is known to run wild."""
    for text, use in ((r"\d*x", "search"), (r"(?:a|b )*\s*\s*c", "match"), (r"\\sqrt(?:\w*,?)\w*!", "fullmatch")):
        pattern = re.compile(text)
        worst = max(seconds_of(pattern, use, pump.text(3_000)) for pump in pumps(pattern))
        assert worst > 100 * min(seconds_of(pattern, use, pump.text(30)) for pump in pumps(pattern)), text
