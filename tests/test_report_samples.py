"""Samples for the page: hostile text, thinning, room: pytest tests/test_report_samples.py"""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_study import HOSTILE, sweep

from alignment_core import report_samples
from alignment_core.report_samples import COLUMNS, browser, embedded, fitting, spread


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_means_the_same_and_cannot_leave_its_element(value: object) -> None:
    text = embedded(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_a_number_that_is_none_is_refused_rather_than_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded({"reward": float("nan")})


def test_rows_say_where_they_are_from_and_prompts_come_once() -> None:
    table = browser(sweep())
    rows = rows_of(table)
    assert table["columns"] == list(COLUMNS)
    assert table["of"] == len(rows) == 8 * 11 + 11 + 1
    assert {row["kind"] for row in rows} == {"rollout", "failed", "solved"}
    assert table["prompts"].count("User: 3 + 5?") == 1
    assert {row["reward"] for row in rows if row["kind"] == "failed"} == {0.0}
    assert next(row for row in rows if row["kind"] == "rollout")["note"] == "tokens 5"
    assert "blame model" in next(row for row in rows if row["kind"] == "failed")["note"]


def test_hostile_text_is_visible_in_every_field() -> None:
    sample = {name: HOSTILE for name in ("problem_id", "prompt", "response", "truth", "extracted", "reason")}
    sample |= {"step": "1", "reward": float("nan"), "length": float("inf")}
    table = browser(sweep(rollouts={HOSTILE: [sample]}, examples={}, solved={}))
    (row,) = rows_of(table)
    assert (row["step"], row["reward"]) == (None, None)
    assert "\u202e" not in json.dumps(table, ensure_ascii=False)
    assert "⟨U+202E⟩⟨U+200B⟩⟨U+0007⟩⟨U+D800⟩" in row["response"]
    assert embedded(table)


def test_huge_texts_are_cut_and_many_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = [{"step": step, "response": "x" * 1_000_000} for step in range(50)]
    monkeypatch.setattr(report_samples, "ROOM", 40_000)
    table = browser(sweep(rollouts={"a": huge}, examples={}, solved={}))
    rows = rows_of(table)
    assert table["of"] == 50
    assert len(rows) == 9
    assert (rows[0]["step"], rows[-1]["step"]) == (0, 49)
    assert rows[0]["response"].endswith("996,000 more characters")


@given(st.lists(st.integers(0, 500), max_size=30), st.integers(0, 4_000))
def test_rows_that_fit_are_all_kept_and_others_are_spread(sizes: list[int], room: int) -> None:
    rows = [{"response": "x" * size, "place": place} for place, size in enumerate(sizes)]
    kept = fitting(rows, room)
    assert [row["place"] for row in kept] == sorted({row["place"] for row in kept})
    if sum(162 + size for size in sizes) + 2 <= room:
        assert kept == rows
    if rows:
        assert kept[0] == rows[0]


def test_many_runs_show_fewer_rollouts_each() -> None:
    rows = [{"step": step} for step in range(50)]
    few, many = (
        report_samples.shown_rollouts(sweep(rollouts={str(n): rows for n in range(runs)})) for runs in (3, 100)
    )
    assert [len(own) for own in few.values()] == [8, 8, 8]
    assert {len(own) for own in many.values()} == {2}
    assert [row["step"] for row in many["0"]] == [0, 49]


def test_a_large_study_keeps_to_its_room() -> None:
    rows = [{"step": step, "prompt": f"{step} " + "p" * 800, "response": "\u4e2d" * 2_000} for step in range(40)]
    table = browser(sweep(rollouts={f"grpo/{n}/seed0": rows for n in range(60)}, examples={}, solved={}))
    assert len(embedded(table)) < 1.1 * report_samples.ROOM
    assert table["of"] == 2_400
    assert {row["run"] for row in rows_of(table)} == {f"grpo/{n}/seed0" for n in range(60)}


def test_a_spread_has_both_ends() -> None:
    rows = [{"step": step} for step in range(100)]
    assert [row["step"] for row in spread(rows, 4)] == [0, 33, 66, 99]
    assert spread(rows, 1) == rows[:1]
    assert spread(rows[:3], 4) == rows[:3]
