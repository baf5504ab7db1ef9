"""Problems: parsing with no row lost, gold answers, traces, splits, leakage, and errors that name the line."""

import json
import re
import sys
from types import SimpleNamespace

import pytest

from alignment_core import leakage
from alignment_core.config import ArithmeticConfig, DataConfig
from alignment_core.problems import load_problems, prepare
from alignment_core.prompts import read_template
from alignment_core.records import Problem

THINK = "User: {question}\nAssistant: <think>"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def gsm8k_rows(count, start=0):
    return [
        {"question": f"What is {n} and 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"}
        for n in range(start, start + count)
    ]


@pytest.fixture
def gsm8k(tmp_path):
    return {
        "kind": "gsm8k",
        "train": write_rows(tmp_path / "train.jsonl", gsm8k_rows(40)),
        "test": write_rows(tmp_path / "test.jsonl", gsm8k_rows(10, start=100)),
    }


def load_one(tmp_path, row, kind="jsonl", template=THINK):
    notes = []
    problems = load_problems(write_rows(tmp_path / "rows.jsonl", [row]), kind, "train", template, notes)
    return problems[0], notes


def test_gsm8k_row_becomes_a_problem(tmp_path):
    row = {"question": "How much?", "answer": "It is <<2*600=1200>>1200.\n#### 1,200"}
    problem, notes = load_one(tmp_path, row, "gsm8k")
    assert problem == Problem(
        id="train/00001",
        question="How much?",
        prompt="User: How much?\nAssistant: <think>",
        ground_truth="1200",
        trace=" It is 1200. </think> <answer> 1200 </answer>",
    )
    done = [{"source": "rows.jsonl", "line": 1, "what": "gold written '1,200'", "done": "read as '1200'"}]
    assert notes == done


def test_math_row_prefers_the_box_and_says_when_the_field_differs(tmp_path):
    row = {"problem": "x?", "solution": r"It is \boxed{5}.", "answer": "6", "type": "Algebra"}
    row["unique_id"] = "test/a/7.json"
    problem, notes = load_one(tmp_path, row, "math")
    assert (problem.id, problem.ground_truth, problem.meta) == ("train/a/7", "5", {"subject": "Algebra"})
    assert [note["done"] for note in notes] == ["took the box, '5'"]


def test_math_row_without_a_box_takes_the_answer_field(tmp_path):
    problem, notes = load_one(tmp_path, {"problem": "x?", "solution": "It is five.", "answer": "5"}, "math")
    assert (problem.ground_truth, problem.trace) == ("5", " It is five. </think> <answer> 5 </answer>")
    assert [note["what"] for note in notes] == ["no closed box in the solution"]


def test_question_answer_row_may_hold_a_number(tmp_path):
    problem, notes = load_one(tmp_path, {"question": "1+1?", "answer": 2})
    assert (problem.ground_truth, problem.trace, notes) == ("2", None, [])


def test_chat_row_reads_the_gold_from_the_solution(tmp_path):
    solution = "We add.\nFinal Answer: The final answer is $9$. I hope it is correct."
    messages = [{"role": "user", "content": "4+5?"}, {"role": "assistant", "content": solution}]
    problem, _ = load_one(tmp_path, {"id": "p_1", "prompt": "4+5?", "messages": messages})
    assert (problem.id, problem.question, problem.ground_truth) == ("train/p_1", "4+5?", "9")
    assert problem.trace == f" {solution} </think> <answer> 9 </answer>"


def test_prompt_without_a_question_is_asked_as_it_is(tmp_path):
    row = {"prompt": "Add 1 and 1.", "response": "It is 2.", "ground_truth": 2}
    problem, _ = load_one(tmp_path, row)
    assert (problem.prompt, problem.trace, problem.ground_truth) == ("Add 1 and 1.", "It is 2.", "2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"rows.jsonl, line 2: not valid JSON .*fix or remove that line"),
        ("[" * 100_000, r"rows.jsonl, line 2: not valid JSON"),
        ("3", r"rows.jsonl, line 2: not a JSON object but int: fix or remove it"),
        ('{"question": "x?"}', r"rows.jsonl, line 2: unknown fields \['question'\]: rename them"),
        ('{"question": "x?", "answer": [1]}', r"rows.jsonl, line 2: field `answer` is list, text is wanted"),
        ('{"question": " ", "answer": "1"}', r"rows.jsonl, line 2: field `question` is empty"),
        ('{"prompt": "x?", "messages": []}', r"rows.jsonl, line 2: `messages` has no assistant turn"),
        ('{"problem": "x?", "solution": "none"}', r"rows.jsonl, line 2: neither a closed .* nor an `answer`: add one"),
        ('{"question": "x?", "answer": "####"}', r"rows.jsonl, line 2: nothing follows '####'"),
    ],
)
def test_malformed_line_is_named_with_the_remedy(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_problems(str(path), "jsonl", "train", THINK, [])


def test_gsm8k_row_without_its_mark_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"line 1: the answer has no '####' line"):
        load_one(tmp_path, {"question": "1+1?", "answer": "2"}, "gsm8k")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(ValueError, match=r"is not UTF-8 text .* convert it"):
        load_problems(str(tmp_path / "rows.jsonl"), "jsonl", "train", THINK, [])


def test_rows_sharing_an_id_are_both_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"id": 1, "question": f"{n}?", "answer": "1"} for n in range(2)])
    with pytest.raises(ValueError, match=r"'train/1' occurs twice, at .* line 1 and .* line 2: give each row an id"):
        load_problems(path, "jsonl", "train", THINK, [])


def test_empty_file_missing_file_and_bare_folder_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    for source, message in [
        (tmp_path / "rows.jsonl", "has no rows"),
        (tmp_path / "none.jsonl", "no file .* give an existing"),
        (tmp_path, "has no train.jsonl"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_problems(str(source), "jsonl", "train", THINK, [])


@pytest.fixture
def reachable(monkeypatch):
    """The hub answers, whatever this machine's network."""
    monkeypatch.setattr("alignment_core.problem_sources.require_hub", lambda source: None)


def hub(tables, configs):
    def load_dataset(name, config, split, revision):
        if (config, split) not in tables:
            raise ValueError(f"Unknown split {split!r}")
        return tables[config, split]

    return SimpleNamespace(load_dataset=load_dataset, get_dataset_config_names=lambda name, revision: configs)


@pytest.mark.usefixtures("reachable")
def test_hub_id_takes_the_main_configuration_and_both_splits(monkeypatch):
    tables = {("main", "train"): gsm8k_rows(5), ("main", "test"): gsm8k_rows(2, start=50)}
    monkeypatch.setitem(sys.modules, "datasets", hub(tables, ["main", "socratic"]))
    prepared = prepare(DataConfig(kind="gsm8k", train="openai/gsm8k", test="openai/gsm8k", dev_size=1), THINK, 0)
    assert (len(prepared.train), len(prepared.dev), len(prepared.test)) == (4, 1, 2)


@pytest.mark.usefixtures("reachable")
def test_hub_math_joins_its_subjects_and_others_must_choose(monkeypatch):
    tables = {(name, "train"): [{"problem": f"{name}?", "solution": r"\boxed{1}"}] for name in ("algebra", "geometry")}
    monkeypatch.setitem(sys.modules, "datasets", hub(tables, ["geometry", "algebra"]))
    problems = load_problems("owner/math", "math", "train", THINK, [])
    assert [problem.question for problem in problems] == ["algebra?", "geometry?"]
    chosen = load_problems("owner/math:geometry", "jsonl", "train", THINK, [])
    assert [(problem.id, problem.question) for problem in chosen] == [("train/00001", "geometry?")]
    with pytest.raises(ValueError, match="take one of owner/math:geometry, owner/math:algebra"):
        load_problems("owner/math", "jsonl", "train", THINK, [])
    with pytest.raises(ValueError, match=r"could not load split 'test' .*Unknown split"):
        load_problems("owner/math", "math", "test", THINK, [])


@pytest.mark.usefixtures("reachable")
def test_unreachable_hub_asks_for_a_local_path(monkeypatch):
    def unreachable(name, revision):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(get_dataset_config_names=unreachable))
    with pytest.raises(ValueError, match=r"could not load .*Couldn't reach.* give the path of a local"):
        load_problems("openai/gsm8k", "gsm8k", "train", THINK, [])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="install it, or give a local file"):
        load_problems("openai/gsm8k", "gsm8k", "train", THINK, [])


def test_official_split_cuts_dev_off_train_by_seed(gsm8k):
    first = prepare(DataConfig(**gsm8k, dev_size=8), THINK, 3)
    assert (len(first.train), len(first.dev), len(first.test)) == (32, 8, 10)
    assert {p.id for p in first.train}.isdisjoint(p.id for p in first.dev)
    assert first == prepare(DataConfig(**gsm8k, dev_size=8), THINK, 3)
    assert first.dev != prepare(DataConfig(**gsm8k, dev_size=8), THINK, 4).dev
    assert first.traces == first.train


def test_resplit_deals_the_shuffled_pool_and_keeps_ids(gsm8k):
    config = DataConfig(**gsm8k, split="resplit", resplit_sizes=(30, 10, 8))
    prepared = prepare(config, THINK, 0)
    ids = [problem.id for split in (prepared.train, prepared.dev, prepared.test) for problem in split]
    assert [len(prepared.train), len(prepared.dev), len(prepared.test)] == [30, 10, 8]
    assert len(set(ids)) == 48
    assert {problem_id.split("/")[0] for problem_id in ids[:30]} == {"train", "test"}
    assert prepared.train != prepare(config, THINK, 1).train


def test_limits_keep_the_first_problems(gsm8k):
    whole = prepare(DataConfig(**gsm8k, dev_size=8), THINK, 0)
    limited = prepare(DataConfig(**gsm8k, dev_size=8, limit_train=5, limit_test=3), THINK, 0)
    assert limited.train == limited.traces == whole.train[:5]
    assert (limited.test, limited.dev) == (whole.test[:3], whole.dev)


def test_impossible_splits_say_what_to_change(gsm8k):
    with pytest.raises(ValueError, match="dev_size 40 leaves no train problem of 40"):
        prepare(DataConfig(**gsm8k, dev_size=40), THINK, 0)
    with pytest.raises(ValueError, match="want 51 problems, there are 50"):
        prepare(DataConfig(**gsm8k, split="resplit", resplit_sizes=(40, 10, 1)), THINK, 0)
    with pytest.raises(ValueError, match=r"needs data\.test"):
        prepare(DataConfig(kind="gsm8k", train=gsm8k["train"]), THINK, 0)
    with pytest.raises(ValueError, match="the test split is empty"):
        prepare(DataConfig(kind="countdown", countdown_size=3, dev_size=1), THINK, 0)


def test_without_dev_the_dev_split_is_empty(gsm8k):
    prepared = prepare(DataConfig(**gsm8k, dev_size=0), THINK, 0)
    assert (len(prepared.train), prepared.dev) == (40, [])


def test_arithmetic_and_its_traces_come_through_prepare():
    arithmetic = ArithmeticConfig(train=30, dev=10, test=12)
    prepared = prepare(DataConfig(kind="arithmetic", arithmetic=arithmetic), read_template("tiny"), 0)
    assert (len(prepared.train), len(prepared.dev), len(prepared.test), len(prepared.traces)) == (30, 10, 12, 30)


def test_external_traces_of_held_out_questions_are_left_out(gsm8k, tmp_path):
    rows = [
        {"prompt": "Rules.\n\nUser: What is 1 and 1?\nAssistant: <think>", "response": " x", "ground_truth": "2"},
        {"prompt": "User: WHAT IS 101  and 1?\nAssistant: <think>", "response": " x", "ground_truth": "102"},
        {"prompt": "Rules.\n\nUser: What is 1 and 1?\nAssistant: <think>", "response": " x", "ground_truth": "2"},
        {"question": "No trace here?", "answer": "1"},
    ]
    traces = write_rows(tmp_path / "traces.jsonl", rows)
    prepared = prepare(DataConfig(**gsm8k, traces=traces, dev_size=0), THINK, 0)
    assert [problem.id for problem in prepared.traces] == ["traces/00001", "traces/00003"]
    assert prepared.traces[0].prompt == "User: What is 1 and 1?\nAssistant: <think>"
    assert prepared.leakage["held_out_traces"] == 1
    assert [(note["line"], note["what"]) for note in prepared.notes] == [
        (2, "asks the held-out problem test/00002"),
        (3, "same prompt and response as line 1"),
        (4, "row has no trace"),
    ]
    with pytest.raises(ValueError, match="no trace outside dev and test"):
        prepare(DataConfig(**gsm8k, traces=write_rows(tmp_path / "t.jsonl", rows[1:2]), dev_size=0), THINK, 0)


def test_leakage_counts_pairs_at_each_normalisation():
    def ask(problem_id, question):
        return Problem(id=problem_id, question=question, prompt=question, ground_truth="1")

    train = [ask("a", "How many?"), ask("b", "how  many?"), ask("c", "other")]
    found = leakage.report({"train": train, "test": [ask("d", "How many?\n"), ask("e", "How many?")]})
    assert {name: (entry["across"], entry["within"]) for name, entry in found.items()} == {
        "exact": (1, 0),
        "whitespace": (2, 1),
        "case_and_space_free": (4, 2),
    }
    assert found["exact"]["pairs"] == [{"left": "a", "left_split": "train", "right": "e", "right_split": "test"}]


def test_gsm8k_parses_whole(shared_data):
    folder = str(shared_data / "gsm8k")
    prepared = prepare(DataConfig(kind="gsm8k", train=folder, test=folder), read_template("reasoning"), 0)
    assert (len(prepared.train), len(prepared.dev), len(prepared.test)) == (6973, 500, 1319)
    assert len(prepared.notes) == 93
    assert all(note["what"].startswith("gold written") for note in prepared.notes)
    assert all(re.fullmatch(r"-?\d+", problem.ground_truth) for problem in prepared.train + prepared.test)
    assert not any("<<" in problem.trace for problem in prepared.traces)
    config = DataConfig(kind="gsm8k", train=folder, test=folder, split="resplit")
    resplit = prepare(config, read_template("reasoning"), 0)
    assert [len(resplit.train), len(resplit.dev), len(resplit.test)] == [6792, 1000, 1000]


def test_math_parses_whole_and_agrees_with_the_known_answers(shared_data):
    folder = shared_data / "math"
    config = DataConfig(kind="math", train=str(folder), test=str(folder), dev_size=0)
    prepared = prepare(config, read_template("reasoning"), 0)
    assert (len(prepared.train), len(prepared.test), len(prepared.traces)) == (7500, 5000, 7498)
    stated = [json.loads(line)["answer"] for name in ("train", "test") for line in (folder / f"{name}.jsonl").open()]
    assert [problem.ground_truth for problem in prepared.train + prepared.test] == [answer.strip() for answer in stated]
    assert [(note["line"], note["what"]) for note in prepared.notes] == [
        (1656, "box without braces"),
        (1708, "box without braces"),
        (5530, "gold answer is empty"),
        (5532, "gold answer is empty"),
    ]
    pair = {"left_split": "train", "right_split": "test"}
    pair |= {"left": "train/geometry/6032", "right": "test/precalculus/24307"}
    assert prepared.leakage["exact"]["across"] == 0
    assert prepared.leakage["whitespace"]["pairs"] == [pair]
    assert prepared.leakage["case_and_space_free"]["across"] == 2


def test_course_files_and_both_trace_sets_parse_whole(shared_data):
    course = {
        "kind": "math",
        "train": str(shared_data / "math" / "course_train.jsonl"),
        "test": str(shared_data / "math" / "course_validation.jsonl"),
        "dev_size": 0,
    }
    r1 = shared_data / "sft" / "r1_math_1767.jsonl"
    prepared = prepare(DataConfig(**course, traces=str(r1)), read_template("reasoning"), 0)
    assert (len(prepared.train), len(prepared.test), len(prepared.traces)) == (7500, 5000, 1767)
    asked = {problem.question for problem in prepared.train}
    assert all(trace.question in asked for trace in prepared.traces)
    written = [json.loads(line)["response"] for line in r1.open(encoding="utf-8")]
    assert [trace.trace for trace in prepared.traces] == written
    assert sum("</think> <answer>" in trace.trace for trace in prepared.traces) == 1439
    sentences = [note for note in prepared.notes if note["what"].startswith("gold is a text")]
    assert [(note["source"], note["line"]) for note in sentences] == [("course_validation.jsonl", 439)]
    gptoss = prepare(
        DataConfig(**course, traces=str(shared_data / "sft" / "gptoss120b_math_4836.json")),
        read_template("reasoning"),
        0,
    )
    assert len(gptoss.traces) + gptoss.leakage["held_out_traces"] == 4836
    left_out = [note for note in gptoss.notes if note["done"] == "left out of the traces"]
    assert [(note["line"], note["what"]) for note in left_out] == [(3439, "asks the held-out problem test/algebra/636")]
