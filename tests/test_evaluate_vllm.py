"""evaluate_vllm: rows, truths and files, over an engine of vllm's shape; on vllm itself where it is installed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_models import byte_tokenizer, tiny_config
from transformers import Qwen2ForCausalLM

from alignment_core import evaluate_vllm


@dataclass
class Output:
    """The fields of vllm.CompletionOutput that count."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = "stop"
    stop_reason: str | int | None = "</answer>"


@dataclass
class Request:
    """The field of vllm.RequestOutput that counts."""

    outputs: list[Output]


class Engine:
    """Answers prompt n with `answers[n]`, and remembers what it was asked."""

    def __init__(self, answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: tuple[Any, Any] | None = None

    def generate(self, prompts: list[str], sampling_params: object) -> list[Request]:
        self.asked = (prompts, sampling_params)
        return [Request([Output(text, list(range(len(text)))) for text in texts]) for texts in self.answers]


def reward_fn(response: str, truth: str) -> dict[str, float]:
    right = float(response == truth)
    return {"reward": right, "format_reward": 1.0, "answer_reward": right}


def test_every_generation_becomes_a_row_graded_against_its_truth() -> None:
    engine = Engine([["4", "55"], ["7", "8"]])
    rows = evaluate_vllm(engine, reward_fn, ["2+2=", "3+4="], "params", ["4", "7"])
    assert engine.asked == (["2+2=", "3+4="], "params")
    assert [(row["prompt"], row["response"], row["ground_truth"], row["reward"]) for row in rows] == [
        ("2+2=", "4", "4", 1.0),
        ("2+2=", "55", "4", 0.0),
        ("3+4=", "7", "7", 1.0),
        ("3+4=", "8", "7", 0.0),
    ]
    assert rows[1] == {
        "prompt": "2+2=",
        "response": "55",
        "ground_truth": "4",
        "response_length": 2,
        "finish_reason": "stop",
        "stop_reason": "</answer>",
        "reward": 0.0,
        "format_reward": 1.0,
        "answer_reward": 0.0,
    }


def test_without_truths_the_reward_finds_them_by_the_prompt() -> None:
    truths = {"2+2=": "4", "3+4=": "7"}
    rows = evaluate_vllm(
        Engine([["4"], ["5"]]), lambda response, prompt: reward_fn(response, truths[prompt]), list(truths), None
    )
    assert [row["reward"] for row in rows] == [1.0, 0.0]
    assert [row["ground_truth"] for row in rows] == [None, None]


def test_rows_are_written_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = evaluate_vllm(Engine([["é\n"]]), reward_fn, ["q"], None, ["é\n"], output_path=path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 ground truths"):
        evaluate_vllm(Engine([["4"], ["5"]]), reward_fn, ["a", "b"], None, ["4"])
    with pytest.raises(ValueError, match="answered 1 of 2 prompts"):
        evaluate_vllm(Engine([["4"]]), reward_fn, ["a", "b"], None, ["4", "5"])


@pytest.mark.slow
def test_on_vllm_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = pytest.importorskip("vllm", reason="vllm is not installed here")
    monkeypatch.setitem(os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    tokenizer = byte_tokenizer()
    config = tiny_config(tokenizer)
    config.hidden_size = 128  # four heads of 32, the smallest that vllm's CPU kernels take
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = vllm.LLM(
        str(tmp_path), dtype="float32", enforce_eager=True, max_model_len=64, seed=0, gpu_memory_utilization=0.1
    )
    params = vllm.SamplingParams(n=2, temperature=1.0, max_tokens=5, min_tokens=2, seed=1)
    rows = evaluate_vllm(engine, reward_fn, ["one", "two two"], params, ["x", "y"], tmp_path / "rows.jsonl")
    assert [row["prompt"] for row in rows] == ["one", "one", "two two", "two two"]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all(2 <= row["response_length"] <= 5 for row in rows)
    assert all(row["reward"] == 0.0 for row in rows)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
