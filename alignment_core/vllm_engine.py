"""One vllm engine per process: started for a model's shape, kept as long as the shape is asked for, always in process.

The engine starts from a folder that holds config and tokenizer, with weights of no meaning; `weight_sync` then gives
it the trainer's, so that no weight passes through a file. Its vocabulary ends with the tokenizer's, so that the
padding of an embedding table is not there to be sampled. Whoever asks again for the same shape, tokenizer and settings
in the same process (the next stage of a study) gets the engine that runs.
"""

import copy
import gc
import hashlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import SamplingConfig
from alignment_core.models import ComputeDtype, device_of, vocab_limit
from alignment_core.processes import process_count

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # a stage process answers on stdout
}
"""Set unless the user has, before vllm is imported."""


PREFILL_TOKENS = 8192
"""Prompt tokens that one step of the engine takes on a CPU, if no prompt alone is longer."""


@dataclass
class Engine:
    """A running `vllm.v1.engine.llm_engine.LLMEngine` and what it was started for."""

    identity: str
    llm: Any
    vocab_size: int
    dtype: torch.dtype
    positions: int
    """Longest prompt and response together."""
    gpu: int | None
    """Index of the device it runs on; None on a CPU."""

    @contextmanager
    def device(self) -> Iterator[None]:
        """Context for every call into the engine: its GPU is the current one, the trainer's is again afterwards."""
        if self.gpu is None:
            yield
            return
        with torch.cuda.device(self.gpu):
            yield


_running: list[Engine] = []
"""The engine of this process, if any."""


def engine_for(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingConfig,
    compute_dtype: ComputeDtype = "float32",
) -> tuple[Engine, bool]:
    """The engine for such a model, and whether it was there before; its weights are those of the last sync, or none.

    An engine of another shape or other settings is stopped first. Raises ValueError where vllm is not installed, the
    GPU asked for is not there, or several processes train together.
    """
    vllm = import_vllm()
    if process_count() > 1:
        raise ValueError("sampling.backend vllm serves one process: train with one, or take the transformers backend")
    size = min(vocab_limit(tokenizer), model.get_output_embeddings().weight.shape[0])
    gpu = _gpu_of(model, sampling)
    settings = _engine_settings(sampling, compute_dtype)
    if gpu is None:
        settings |= _whole_prompts(model, sampling)
    with tempfile.TemporaryDirectory(prefix="alignflow-vllm-") as folder:
        _describe_model(model, tokenizer, size, Path(folder))
        identity = _digest(Path(folder), f"{settings} {gpu}")
        if _running and _running[0].identity == identity:
            return _running[0], True
        stop_engine()
        llm = _start(vllm, folder, settings, gpu)
    _running.append(Engine(identity, llm, size, llm.model_config.dtype, int(llm.model_config.max_model_len), gpu))
    return _running[0], False


def stop_engine() -> None:
    """End this process's engine, if it has one, and free its memory."""
    if not _running:
        return
    engine = _running.pop()
    with engine.device():
        engine.llm.engine_core.shutdown()
        engine.llm = None
        gc.collect()
        importlib.import_module("vllm.distributed").cleanup_dist_env_and_memory()


def import_vllm() -> Any:
    """The vllm package, set to run inside this process.

    Raises ValueError, with the remedy, where it is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise ValueError(
            f"sampling.backend is vllm, which cannot be imported here ({error}): install it with `python3 -m "
            "flows.bootstrap install gpu`, or name an interpreter that has it in ALIGNFLOW_STAGE_PYTHON (`python3 -m "
            "flows.bootstrap_vllm` makes one for a CPU), or take sampling.backend transformers"
        ) from error
    return vllm


def _engine_settings(sampling: SamplingConfig, compute_dtype: ComputeDtype) -> dict[str, Any]:
    """Arguments of the engine that do not depend on the model."""
    vllm, settings = sampling.vllm, {}
    if vllm.kv_cache_gb is not None:
        settings["kv_cache_memory_bytes"] = int(vllm.kv_cache_gb * 1e9)
    return settings | {
        "load_format": "dummy",
        "dtype": compute_dtype,
        "max_num_seqs": sampling.batch_size,
        "gpu_memory_utilization": vllm.gpu_memory_utilization,
        "enforce_eager": vllm.enforce_eager,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "seed": 0,
        "disable_log_stats": True,
    }


def _whole_prompts(model: PreTrainedModel, sampling: SamplingConfig) -> dict[str, Any]:
    """Arguments under which no prompt is cut into chunks: after each chunk vllm takes a draw back from the request's
    generator, and a CPU's generator cannot do that."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    room = max(positions, PREFILL_TOKENS, sampling.batch_size)
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": room}


def _start(vllm: Any, folder: str, settings: dict[str, Any], gpu: int | None) -> Any:
    """A new engine; the GPU that is current before is so afterwards."""
    trainers = torch.cuda.current_device() if gpu is not None else None
    made = vllm.EngineArgs(model=folder, tokenizer=folder, **settings).create_engine_config()
    if gpu is not None:
        made.device_config.device = torch.device("cuda", gpu)
    try:
        engine_class = importlib.import_module("vllm.v1.engine.llm_engine").LLMEngine
        return engine_class.from_vllm_config(made, disable_log_stats=True)
    finally:
        if trainers is not None:
            torch.cuda.set_device(trainers)


def _gpu_of(model: PreTrainedModel, sampling: SamplingConfig) -> int | None:
    """The GPU the engine takes; None for a trainer on the CPU."""
    asked, device = sampling.vllm.gpu, device_of(model)
    count = torch.cuda.device_count()
    if asked is not None and asked >= count:
        raise ValueError(f"sampling.vllm.gpu is {asked}, and there are {count} GPUs here: give a lower index, or null")
    if device.type != "cuda":
        return asked
    return asked if asked is not None else device.index or 0


def _describe_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    """Write the config, with a vocabulary of `size`, and the tokenizer."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.get_text_config().vocab_size = size
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(folder: Path, settings: str) -> str:
    """sha256 of what an engine is started for."""
    content = hashlib.sha256(settings.encode())
    for path in sorted(folder.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()
