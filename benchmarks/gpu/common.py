"""What the GPU proofs share: provenance, a JSON report written as it grows, a clock, synthetic models and lengths."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from alignment_core.batching import TokenSequence
from alignment_core.random_draws import uniforms
from alignment_core.seeding import derive_seed

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "accelerate", "pydantic", "numpy", "math-verify",
    "flash-attn", "vllm",
)  # fmt: skip
GIB = 2**30


def base_parser(description: str | None, budget: float) -> argparse.ArgumentParser:
    """Options every proof has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--toy", action="store_true", help="sizes for a CPU: tries the script, proves nothing")
    parser.add_argument("--budget-seconds", type=float, default=budget, help="start nothing new after this long")
    parser.add_argument("--git-sha", default=os.environ.get("GIT_SHA"), help="where the copy carries no .git")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None, help="default: cuda if there is one")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def device_from(arguments: argparse.Namespace) -> torch.device:
    """The device asked for, else the one there is."""
    return torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def provenance(device: torch.device, git_sha: str | None) -> dict[str, object]:
    """Versions, device, command and commit: what every row carries."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu x{torch.get_num_threads()}",
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | _installed(),
        "command": " ".join([Path(sys.executable).name, "-m", _module_name(), *sys.argv[1:]]),
        "git_sha": git_sha or _git_sha(),
    }


class Report:
    """A JSON file that is complete after every change, so that a killed proof leaves what it has."""

    def __init__(self, path: Path, origin: Mapping[str, object]) -> None:
        self.path, self._origin = path, dict(origin)
        self.content: dict[str, object] = {"provenance": dict(origin), "rows": []}
        self.rows: list[dict[str, object]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row, print it short, write the file."""
        self.rows.append({**row, "provenance": self._origin})
        shown = {key: _rounded(value) for key, value in row.items() if not isinstance(value, (list, dict))}
        print(json.dumps(shown, ensure_ascii=False), flush=True)
        self.write()

    def put(self, name: str, value: object) -> None:
        """Set a named part of the file beside the rows."""
        self.content[name] = value
        self.write()

    def write(self) -> None:
        """Replace the file in one step."""
        self.content["rows"] = self.rows
        replace_json(self.path, self.content)


class Checks:
    """Rows of the report: a value under a bound."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def add(self, name: str, value: float, bound: float, why: str, **more: object) -> None:
        """One check; it passes when `value` <= `bound`."""
        self._report.add({"name": name, "value": value, "bound": bound, "pass": value <= bound, "why": why, **more})

    def note(self, name: str, value: object, why: str) -> None:
        """A reading without a verdict."""
        self._report.add({"name": name, "value": value, "bound": None, "pass": None, "why": why})


class Clock:
    """Seconds spent and left of a budget."""

    def __init__(self, budget: float) -> None:
        self._started, self.budget = time.monotonic(), budget

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def left(self) -> float:
        """Seconds of the budget not yet spent."""
        return self.budget - self.spent


@dataclass
class Span:
    """Wall time and peak memory of one phase on a device."""

    seconds: float
    peak_gib: float | None


class Stopwatch:
    """Laps on one device, each from the last one's end; the device is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begin a lap now."""
        synchronize(self._device)
        self._begin()

    def lap(self) -> Span:
        """End the lap and begin the next, with no time between."""
        synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) / GIB if self._device.type == "cuda" else None
        began = self.began
        self._begin()
        return Span(self.began - began, peak)

    def _begin(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self.began = time.perf_counter()
        """When the lap began, by `time.perf_counter`."""


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def replace_json(path: Path, content: object) -> None:
    """Write JSON under another name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` words w0 w1 …, the last one the end of text: ids without meaning, text that round-trips."""
    vocabulary = {f"w{index}": index for index in range(size - 1)} | {"[eos]": size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[eos]", pad_token="[eos]")


def small_shape(vocab_size: int, hidden_size: int, layers: int) -> Qwen2Config:
    """A Qwen2 shape with heads of 64 (what the fast attention kernels take) and two key/value heads."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocab_size - 1,
    )


def shape_1_5b() -> Qwen2Config:
    """The published shape of Qwen2.5-Math-1.5B: 1.544 B parameters, head tied to the embedding."""
    return Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def random_model(shape: Qwen2Config, device: torch.device, seed: int, sharpness: float = 1.0) -> Qwen2ForCausalLM:
    """Float32 weights drawn on `device`; the same for the same seed and device type."""
    torch.manual_seed(derive_seed(seed, "proof model") % 2**31)
    with torch.device(device):
        model = Qwen2ForCausalLM(shape).float()
    with torch.no_grad():
        # Sharper distributions than evenly spread ones: entropies differ from position to position.
        model.model.norm.weight *= sharpness
    return model.eval()


def moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself, on `device`."""
    nn.Module.to(model, device)
    return model


def random_sequences(
    prompt_lengths: Sequence[int], response_lengths: Sequence[int], vocab_size: int, seed: int
) -> list[TokenSequence]:
    """Sequences of the given lengths with ids drawn evenly below `vocab_size`."""
    sequences = []
    for index, (prompt, response) in enumerate(zip(prompt_lengths, response_lengths, strict=True)):
        draws = uniforms([derive_seed(seed, "ids", index)], 0, prompt + response)[0]
        ids = [int(draw * vocab_size) for draw in draws]
        sequences.append(TokenSequence(ids[:prompt], ids[prompt:]))
    return sequences


def gamma_lengths(count: int, mean: float, maximum: int, seed: int) -> list[int]:
    """`count` response lengths, gamma-shaped (two exponentials added), at most `maximum`, mean close to `mean`."""
    pairs = 1.0 - uniforms([derive_seed(seed, "length", index) for index in range(count)], 0, 2)
    raw = torch.from_numpy(pairs).log().neg().sum(1) / 2
    low, high = mean, 2.0 * mean
    for _ in range(50):
        # The cut at `maximum` lowers the mean; the scale that restores it is found by bisection.
        middle = (low + high) / 2
        low, high = (middle, high) if float((raw * middle).clamp(max=maximum).mean()) < mean else (low, middle)
    return [max(1, round(float(value))) for value in (raw * low).clamp(max=maximum)]


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """||value - reference|| / ||reference|| in float64; NaN counts as infinite."""
    ours, theirs = value.detach().double().cpu(), reference.detach().double().cpu()
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))
    return error if error == error else float("inf")


def gradient_vector(model: nn.Module) -> torch.Tensor:
    """All gradients in one float64 vector on the CPU, in the order of the parameters."""
    parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()]
    return torch.cat([part.detach().double().cpu().flatten() for part in parts])


def flat(model: nn.Module) -> torch.Tensor:
    """All weights in one vector on the CPU."""
    return torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


def _installed() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _git_sha() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _module_name() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
