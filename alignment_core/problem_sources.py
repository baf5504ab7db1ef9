"""Raw rows of a data set: from a local file (JSONL or a JSON array), a folder of them, or a hub id.

Nothing is interpreted here; a row keeps where it came from, so that every later complaint can name it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.hub import require_hub

HUB_ID = re.compile(
    r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
FILE_SUFFIXES = (".jsonl", ".json")
PREFERRED_CONFIGS = ("main", "default")

Fields = Mapping[str, Any]
"""One row as the source wrote it: untyped until a parser has checked it."""


@dataclass(frozen=True)
class RawRow:
    """One row and its place: `line` counts from 1 (items, in a JSON array or a hub split)."""

    source: str
    line: int
    fields: Fields

    @property
    def label(self) -> str:
        """The source without folders, for records that must not depend on where the data lies."""
        return Path(self.source).name if self.source.endswith(FILE_SUFFIXES) else self.source

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"{self.source}, line {self.line}"


def read_rows(source: str, split: str, all_configs: bool = False) -> list[RawRow]:
    """All rows of `split` in a file, a folder holding `SPLIT.jsonl`, or a hub id `owner/name[:config][@revision]`.

    `all_configs` joins the configurations of a hub data set that is divided by subject. Raises ValueError, naming
    file and line, for what cannot be read; an unreachable hub asks for a local path.
    """
    path = _local_file(source, split)
    rows = list(_file_rows(path)) if path is not None else _hub_rows(source, split, all_configs)
    if not rows:
        raise ValueError(f"{source} ({split}) has no rows: give a file with at least one problem")
    return rows


def require_readable(source: str, split: str) -> None:
    """Raise ValueError, naming file and line, if a local source cannot be read; a hub id passes without a question."""
    if _local_file(source, split) is not None:
        read_rows(source, split)


def _local_file(source: str, split: str) -> Path | None:
    """The file meant by `source`, or None for a hub id."""
    path = Path(source)
    if path.is_dir():
        candidates = [path / f"{split}{suffix}" for suffix in FILE_SUFFIXES]
        found = next((file for file in candidates if file.is_file()), None)
        if found is None:
            raise ValueError(f"folder {source} has no {split}.jsonl or {split}.json: give the file itself")
        return found
    if path.is_file():
        return path
    if source.endswith(FILE_SUFFIXES) or not HUB_ID.fullmatch(source):
        raise ValueError(f"no file {source!r}: give an existing .jsonl or .json file, or a hub id 'owner/name'")
    return None


def _file_rows(path: Path) -> Iterator[RawRow]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it") from error
    if text.lstrip().startswith("["):
        yield from _array_rows(path, text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _row(str(path), number, _decode(line, f"{path}, line {number}", "fix or remove that line"))


def _array_rows(path: Path, text: str) -> Iterator[RawRow]:
    items = _decode(text, str(path), "write a JSON array, or one JSON object a line")
    for number, item in enumerate(items, 1):
        yield _row(str(path), number, item)


def _decode(text: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON ({error}): {remedy}") from error


def _row(source: str, number: int, value: object) -> RawRow:
    if not isinstance(value, dict):
        raise ValueError(f"{source}, line {number}: not a JSON object but {type(value).__name__}: fix or remove it")
    return RawRow(source, number, value)


def _hub_rows(source: str, split: str, all_configs: bool) -> list[RawRow]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{source!r} on the hub needs `datasets`: install it, or give a local file") from error
    parts = HUB_ID.fullmatch(source)
    if parts is None:
        raise ValueError(f"{source!r} is no hub id 'owner/name[:config][@revision]'")
    name, revision = parts["name"], parts["revision"]
    require_hub(source)
    try:
        configs = [parts["config"]] if parts["config"] else datasets.get_dataset_config_names(name, revision=revision)
        chosen = _choose_configs(source, configs, all_configs)
        tables = [datasets.load_dataset(name, config, split=split, revision=revision) for config in chosen]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"could not load split {split!r} of {source!r} from the hub ({error}): check the id and the network, "
            "or give the path of a local .jsonl file"
        ) from error
    rows = [dict(row) for table in tables for row in table]
    return [RawRow(f"{source} [{split}]", number, row) for number, row in enumerate(rows, 1)]


def _choose_configs(source: str, configs: list[str], all_configs: bool) -> list[str]:
    for preferred in PREFERRED_CONFIGS:
        if preferred in configs:
            return [preferred]
    if len(configs) == 1 or all_configs:
        return sorted(configs)
    raise ValueError(f"it has several configurations: take one of {', '.join(f'{source}:{name}' for name in configs)}")
