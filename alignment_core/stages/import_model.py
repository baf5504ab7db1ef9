"""Stage `import_model`: a pretrained checkpoint by reference; checked to load, not copied."""

import json
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig

from alignment_core.hub import loading_options
from alignment_core.model_folders import require_complete
from alignment_core.models import load_tokenizer
from alignment_core.runs import RunContext
from alignment_core.stage_config import ImportModelStage

CONFIG = ImportModelStage


def run(config: ImportModelStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write identity.json (content, part of the digest) and record/location.json (where it lies, not part of it)."""
    if Path(config.source).is_dir():
        require_complete(Path(config.source))
    tokenizer = load_tokenizer(config.source, config.revision)
    model = AutoConfig.from_pretrained(config.source, **loading_options(config.source, config.revision))
    revision = getattr(model, "_commit_hash", None) or config.revision
    identity = {
        "source": config.content or config.source,
        "revision": revision,
        "architectures": model.architectures,
        "vocab_size": model.vocab_size,
        "tokens": len(tokenizer),
    }
    (output / "identity.json").write_text(json.dumps(identity, indent=1), encoding="utf-8")
    location = {"source": config.source, "revision": revision}
    (output / "record" / "location.json").write_text(json.dumps(location), encoding="utf-8")
    run.emit(0, {"model/vocab_size": model.vocab_size, "model/tokens": len(tokenizer)})
