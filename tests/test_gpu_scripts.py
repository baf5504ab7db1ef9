"""The GPU proofs run as they stand, at toy size on a CPU, against the present core. What they prove needs a GPU.

Run: pytest tests/test_gpu_scripts.py
"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from tiny_models import byte_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from alignment_core.attention import KERNELS, choose_kernel
from alignment_core.engine import Engine
from alignment_core.logprobs import gradient_of
from alignment_core.losses import aggregate, negative_log_likelihood
from alignment_core.models import save_model
from alignment_core.training_config import LengthNormalization, LossType, SFTConfig
from benchmarks.gpu import common
from benchmarks.gpu.bench import Work, packed_work
from benchmarks.gpu.objectives import allowed

ROOT = Path(__file__).resolve().parents[1]
PRODUCTS = ("aten.mm", "aten.addmm", "aten.addmm_")
PHASES = ["sync", "generate", "grade", "update"]


def run(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """What `python -m benchmarks.gpu.NAME` wrote; it must end well, and no row may have failed."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", "--out", str(folder), "--toy", "--device", "cpu"]
    # Parts are left out when the time is spent, which on a busy machine it would be.
    command += ["--budget-seconds", "1000000"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in found["rows"] if row.get("pass") is False] == []
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_right_checks_every_loss_and_every_kernel(tmp_path: Path) -> None:
    rows = by_name(run("right", tmp_path))
    picked = choose_kernel(torch.device("cpu"), torch.float32)
    for dtype in ("float32", "bfloat16"):
        for kind in get_args(LossType):
            modes = [mode for mode in get_args(LengthNormalization) if allowed(kind, mode)]
            assert modes == (["masked_mean"] if kind == "gspo" else list(get_args(LengthNormalization)))
            for objective in (*(f"{kind} {mode}" for mode in modes), f"{kind} masked_mean on-policy"):
                assert rows[f"{dtype} {objective}: loss"]["pass"]
                assert rows[f"{dtype} {objective}: gradient"]["pass"]
        for other in ("dpo", "sft token_mean", "grpo_clip masked_mean with importance weights and KL"):
            assert rows[f"{dtype} {other}: gradient"]["pass"]
        for kernel in KERNELS:
            label = f"{dtype} packed, kernel {kernel}"
            if kernel == picked:
                assert rows[f"{label}: all in one: log_probs"]["pass"]
                assert rows[f"{label}: gradient"]["pass"]
            else:
                assert rows[label]["value"] == "absent"
                assert rows[label]["why"]
        assert rows[f"{dtype} padded: all in one: entropy"]["pass"]
        assert rows[f"{dtype} padded: gradient"]["pass"]
    assert rows["resumed vs straight: relative weight difference"]["value"] == 0
    assert rows["resumed run did steps"]["value"] == [4, 5, 6]


@pytest.mark.slow
def test_speed_tells_the_phases_of_a_step_apart(tmp_path: Path) -> None:
    rows = by_name(run("speed", tmp_path))
    step = rows["grpo whole step"]
    assert list(step["phases"]) == PHASES
    assert all(seconds >= 0 for seconds in step["phases"].values())
    # The phases are laps of one clock: they leave nothing out, however long anything took.
    assert sum(step["phases"].values()) == pytest.approx(step["seconds"], rel=1e-9)
    assert step["phases"] == {phase: rows[f"grpo {phase}"]["seconds"] for phase in PHASES}
    loop = step["loop"]
    # By the loop's own clock its phases are parts of the step; grading beside sampling is none of them.
    assert sum(loop[f"time/{phase}"] for phase in PHASES) <= loop["time/step"] + 1e-9
    assert step["phases"]["grade"] == loop["time/grade"]
    assert step["phases"]["update"] >= loop["time/update"] - 1e-9
    assert rows["grpo grade"]["seconds_beside_sampling"] == loop["time/grade_overlapped"]
    assert len(step["seconds_of_steps"]) == 3
    assert sum(step["seconds_of_steps"]) <= step["seconds_of_call"]
    for name in ("sft 128 tokens a micro-batch", "sft 256 tokens a micro-batch", "grpo update"):
        assert rows[name]["attention"] == f"attention: {KERNELS['sdpa']}"
        assert rows[name]["mfu"] > 0
    assert "padded" in rows["sft 256 tokens a micro-batch, padded"]["attention"]
    absent = {name.rpartition(" ")[2] for name, row in rows.items() if "absent" in row}
    assert absent == set(KERNELS) - {"sdpa"}
    assert rows["grpo whole step"]["decoding"] == rows["decode step, 8 rows"]["decoding"] == "plain"


@pytest.mark.slow
def test_learn_leaves_a_curve_of_every_phase(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = common.random_model(common.small_shape(len(tokenizer), 128, 2), torch.device("cpu"), 0)
    save_model(model, tokenizer, tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--phases", "zero_shot,sft,grpo,sft_grpo"]
    options += ["--sft-epochs", "6", "--sft-learning-rate", "3e-3", "--least-seconds", "0"]
    found = run("learn", tmp_path / "out", *options)
    rows = by_name(found)
    losses = [point["train/loss"] for point in found["curve/sft"] if "train/loss" in point]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]
    for phase, steps in (("sft", 12), ("grpo", 2), ("sft_grpo", 2)):
        assert [point["step"] for point in found[f"curve/{phase}"]] == list(range(steps + 1))
        assert all("eval/accuracy" in point for point in found[f"curve/{phase}"])
        assert rows[f"{phase} training"]["steps"] == steps
        assert rows[f"{phase} training"]["lines"] == [f"attention: {KERNELS['sdpa']}"]
        assert {"accuracy_low", "accuracy_high", "mcnemar_p", "difference_interval"} <= rows[f"{phase} T=1"].keys()
    means = rows["grpo training"]
    assert sum(means[f"time/{phase}"] for phase in PHASES) <= means["time/step"] + 1e-9
    assert rows["zero_shot T=1"]["n"] == 6
    assert len((tmp_path / "out" / "sft-test-T1.jsonl").read_text(encoding="utf-8").splitlines()) == 6


@pytest.mark.slow
def test_decode_compares_the_ways_to_decode(tmp_path: Path) -> None:
    rows = by_name(run("decode", tmp_path))
    assert rows["static vs plain, float32"]["pass"]
    assert rows["static vs plain, float32"]["tokens_in_common_beginnings"] > 0.9
    assert {"plain, 12 rows, 12 tokens", "static, 12 rows, 12 tokens", "static, 12 rows, 24 tokens"} <= rows.keys()


def test_the_flops_of_an_update_are_the_products_it_makes() -> None:
    """Against torch's count of an SFT step over rows that share prompts; attention, which it counts whole, apart."""
    device, budget = torch.device("cpu"), 64
    tokenizer = common.word_tokenizer(500)
    model = common.random_model(common.small_shape(512, 128, 2), device, 0)
    drawn = common.random_sequences([9] * 6, [5, 1, 17, 30, 8, 12], 400, 0)
    sequences = [
        common.TokenSequence(drawn[index // 3].prompt_ids, one.response_ids) for index, one in enumerate(drawn)
    ]
    engine = Engine(model, tokenizer, SFTConfig(micro_batch_tokens=budget))
    rows = 0

    def added(_: torch.Size, left: torch.Size, right: torch.Size, **_others: object) -> int:
        return 2 * left[0] * left[1] * right[1]

    # The head adds to its weight's gradient in place, which the counter does not know by itself.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added}) as counter:
        for _, batch in engine.micro_batches(sequences):

            def share_of(log_probs: torch.Tensor, mask: torch.Tensor = batch.response_mask) -> torch.Tensor:
                return aggregate(negative_log_likelihood(log_probs), mask, "token_mean", 73)

            expected = gradient_of(share_of, batch.response_mask)
            engine.backward(share_of(engine.scores(batch, expected_gradient=expected).log_probs))
            rows += 1
    assert rows > 1
    counted = counter.get_flop_counts()["Global"]
    products = sum(value for operator, value in counted.items() if str(operator) in PRODUCTS)
    work = packed_work(sequences, budget)
    assert work.predictions == 73
    assert work.squares == sum((sequence.length - 1) ** 2 for sequence in sequences)
    bench: Any = SimpleNamespace(model=model, tokenizer=tokenizer)
    assert 3 * Work(work.tokens, 0, work.predictions).forward_flops(bench) == products
    layers, heads, size, forth_and_onto = 2, 2, 64, 2
    pairs = sum((one.length - 1) ** 2 / 2 for one in sequences)
    assert Work(0, work.squares, 0).forward_flops(bench) == layers * heads * forth_and_onto * 2 * size * pairs
