"""Training state on disk: weights and moments as safetensors, the rest as JSON; no pickle.

No random state is saved because there is none: every draw is a function of (seed, step). The data cursor is the
step too. So weights, moments and step are all that a bit-equal resume needs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from alignment_core.models import tensors_by_name
from alignment_core.runs import RunContext

FORMAT = 1
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
REMEDY = "remove that folder, and the stage starts anew"


@dataclass(frozen=True)
class LoopIdentity:
    """Which loop a checkpoint belongs to; a checkpoint of another one is refused."""

    loop: str
    seed: int
    total: int
    """Steps of the whole loop."""
    items: int
    """Training examples, or problems."""


def write_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, identity: LoopIdentity
) -> None:
    """Fill `folder` with the state after `step` steps. Durability is the run context's part."""
    save_file(_contiguous(dict(tensors_by_name(model))), folder / MODEL_FILE)
    save_file(_contiguous(_moments(model, optimizer)), folder / OPTIMIZER_FILE)
    state = {"format": FORMAT, "step": step, **identity.__dict__}
    (folder / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: LoopIdentity) -> int:
    """Put the saved weights and moments into `model` and `optimizer`; return the number of steps done.

    Raises ValueError if the checkpoint cannot be read or belongs to another loop or another model.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        weights, moments = load_file(folder / MODEL_FILE), load_file(folder / OPTIMIZER_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"checkpoint {folder} cannot be read ({error}): {REMEDY}") from error
    step = int(state.pop("step"))
    if state != {"format": FORMAT, **identity.__dict__}:
        raise ValueError(f"checkpoint {folder} is of another run ({state}, not {identity}): {REMEDY}")
    _copy_into(dict(tensors_by_name(model)), weights, folder)
    _restore_moments(model, optimizer, moments, folder)
    return step


def resume(run: RunContext, model: nn.Module, optimizer: torch.optim.Optimizer, identity: LoopIdentity) -> int:
    """Steps already done: 0, or those of the run's newest checkpoint, which is then loaded."""
    folder = run.latest_checkpoint()
    if folder is None:
        return 0
    step = read_checkpoint(folder, model, optimizer, identity)
    run.say(f"resumed {identity.loop} at step {step} of {identity.total}")
    return step


def checkpoint_if_due(
    run: RunContext, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, identity: LoopIdentity
) -> None:
    """Save the state after `step` when the run asks for it; never after the last step, whose model is the result."""
    if step < identity.total and run.checkpoint_due():
        run.save_checkpoint(step, lambda folder: write_checkpoint(folder, model, optimizer, step, identity))


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Optimizer state, `parameter/quantity` -> tensor."""
    return {
        f"{name}/{quantity}": value
        for name, weight in model.named_parameters()
        for quantity, value in optimizer.state.get(weight, {}).items()
    }


def _restore_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor], folder: Path
) -> None:
    weights = dict(model.named_parameters())
    for key, value in saved.items():
        name, quantity = key.rsplit("/", 1)
        if name not in weights:
            raise ValueError(f"checkpoint {folder} holds moments of {name}, which the model lacks: {REMEDY}")
        # The step counter of a fused optimizer lives where the weight lives, like the moments.
        optimizer.state[weights[name]][quantity] = value.to(weights[name].device)


def _copy_into(targets: dict[str, torch.Tensor], saved: dict[str, torch.Tensor], folder: Path) -> None:
    if targets.keys() != saved.keys():
        different = sorted(targets.keys() ^ saved.keys())[0]
        raise ValueError(f"checkpoint {folder} and the model differ in {different}: {REMEDY}")
    for name, target in targets.items():
        if target.shape != saved[name].shape:
            shapes = f"{tuple(saved[name].shape)} and {tuple(target.shape)}"
            raise ValueError(f"checkpoint {folder} and the model differ in {name}, {shapes}: {REMEDY}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved[name])


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
