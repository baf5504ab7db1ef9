"""The code part of a stage key: every definition the stage can reach by name, as a normalised syntax tree.

From an entry function the names it uses are followed through `alignment_core` (functions, classes, module
constants, imports inside functions included). Comments, docstrings, formatting and edits to definitions
that are not reached change nothing. Nothing is imported: the sources are read as text, so the parent of
a study pays for no torch. A definition that names a file of `alignment_core/templates` covers its content.
"""

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from alignment_core.failures import HostError
from alignment_core.operation import stage_python
from alignment_core.package_versions import version_of, versions_in

PACKAGE = "alignment_core"
ROOT = Path(__file__).parent
VERSIONED = {
    *("torch", "transformers", "tokenizers", "vllm", "flash_attn", "numpy", "datasets", "matplotlib"),
    *("math_verify", "latex2sympy2_extended", "sympy", "mpmath"),
}
"""External packages whose version can change a result, if the reached code imports them."""
SAMPLERS = {
    "transformers": "alignment_core.transformers_sampler.TransformersSampler",
    "vllm": "alignment_core.vllm_sampler.VllmSampler",
}
"""What `sampling.backend` chooses from; a stage's key follows the one it names."""
MODULE_BODY = "<module>"
OBSERVERS = {"alignment_core.validation.make_validator", "alignment_core.validation.stage_validator"}
"""Definitions that watch a run: they write its record, never its content, so no key follows them. Without this rule
an edit of the grader would train every model again for the sake of a validation curve."""


@dataclass
class Definition:
    """One top-level name of a module: its digest, and what it refers to."""

    digest: str
    names: set[str]
    """Plain names used in the body."""
    chains: set[tuple[str, ...]]
    """Dotted uses such as ("losses", "aggregate")."""
    imports: dict[str, str] = field(default_factory=dict)
    """Imports made inside the body: alias -> dotted target."""


class Definitions(Mapping[str, Definition]):
    """The top-level definitions of one source file, each described when it is first asked for."""

    def __init__(self, bodies: Mapping[str, list[ast.stmt]]) -> None:
        self._bodies = bodies
        self._described: dict[str, Definition] = {}

    def __getitem__(self, name: str) -> Definition:
        """Raises KeyError if the file defines no such name."""
        if name not in self._described:
            self._described[name] = _describe(self._bodies[name])
        return self._described[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bodies)

    def __len__(self) -> int:
        return len(self._bodies)

    def __contains__(self, name: object) -> bool:
        return name in self._bodies


@dataclass
class Module:
    """What one source file defines, and the imports that its definitions share."""

    definitions: Definitions
    imports: dict[str, str]


@dataclass(frozen=True)
class Fingerprint:
    """What a stage's code is: digest by definition, and versions of the libraries it reaches."""

    definitions: dict[str, str]
    versions: dict[str, str]


def stage_fingerprint(stage: str, settings: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint of a stage kind under its settings: without the samplers they do not name, and with the versions
    of the interpreter it will run in.

    Raises ValueError as `fingerprint` does, and where that interpreter cannot be asked.
    """
    backend = (settings.get("sampling") or {}).get("backend")
    unused = [label for name, label in SAMPLERS.items() if backend and name != backend]
    found = fingerprint(f"{PACKAGE}.stages.{stage}:run", frozenset(unused))
    python = stage_python(settings)
    if python is None:
        return found
    return Fingerprint(found.definitions, versions_in(python, tuple(found.versions)))


@cache
def fingerprint(entry: str, unused: frozenset[str] = frozenset()) -> Fingerprint:
    """The fingerprint of `entry`, given as "alignment_core.stages.sft:run"; `unused` definitions are not followed.

    Raises ValueError if the entry, or a name imported from a module of the package, is not defined there.
    """
    module, _, name = entry.partition(":")
    pending = [(module, name)]
    seen: dict[str, str] = {}
    external: set[str] = set()
    while pending:
        module, name = pending.pop()
        label = f"{module}.{name}"
        if label in seen or label in OBSERVERS or label in unused:
            continue
        definition = _definition(module, name)
        targets = sorted(_targets(module, definition))
        seen[label] = _with_targets(definition.digest, targets)
        for _, target in targets:
            if target.split(".")[0] != PACKAGE:
                external.add(target.split(".")[0])
                continue
            pending.extend(_resolve(target))
    versions = {package: version_of(package) for package in sorted(external & VERSIONED)}
    return Fingerprint(dict(sorted(seen.items())), versions)


def _with_targets(digest: str, targets: Sequence[tuple[str, str]]) -> str:
    """A definition's digest, with what its names stand for: `from math import cbrt as sqrt` changes who uses `sqrt`."""
    meanings = (f"{name}={target}" for name, target in targets)
    return hashlib.sha256("\n".join((digest, *meanings)).encode()).hexdigest()[:16]


def require_unedited(definitions: Mapping[str, str]) -> None:
    """Raise HostError if a definition of a fingerprint is not on disk now as this process first saw the package.

    Called once the stage's module is imported, so that what runs is what the key says. Edits that the stage
    cannot feel pass.
    """
    changed = []
    for module in sorted({label.rpartition(".")[0] for label in definitions}):
        path = _source(module)
        text = path.read_bytes() if path is not None else b""
        if path is not None and text == _snapshot().get(path):
            continue
        before, now = read_module(module), _parse(text)
        names = (label.rpartition(".")[2] for label in definitions if label.rpartition(".")[0] == module)
        changed += [f"{module}.{name}" for name in names if _meaning(before, name) != _meaning(now, name)]
    if changed:
        raise HostError(f"{', '.join(changed[:4])} was edited while this command runs: run the command again")


def _meaning(module: Module, name: str) -> object:
    """What a definition says and where the names it imports come from; None if it is gone."""
    definition = module.definitions.get(name)
    if definition is None:
        return None
    heads = definition.names | {chain[0] for chain in definition.chains}
    return definition.digest, {head: module.imports.get(head) for head in heads}


@cache
def _snapshot() -> dict[Path, bytes]:
    """Every source of the package as it was when this process first asked, before any stage is imported."""
    return {path: path.read_bytes() for path in ROOT.rglob("*.py")}


def _definition(module: str, name: str) -> Definition:
    definitions = read_module(module).definitions
    if name not in definitions:
        raise ValueError(f"{module} defines no {name!r}: import names from the module that defines them")
    return definitions[name]


def _targets(module: str, definition: Definition) -> Iterator[tuple[str, str]]:
    """Every name a definition uses, and its dotted target."""
    shared = read_module(module)
    if MODULE_BODY in shared.definitions:
        yield "", f"{module}.{MODULE_BODY}"
    for chain in definition.chains | {(name,) for name in definition.names}:
        head, rest = chain[0], chain[1:]
        if head in definition.imports:
            yield head, ".".join((definition.imports[head], *rest))
        elif head in shared.definitions:
            yield head, f"{module}.{head}"
        elif head in shared.imports:
            yield head, ".".join((shared.imports[head], *rest))


def _resolve(target: str) -> Iterator[tuple[str, str]]:
    """(module, name) pairs of a dotted target inside the package; a bare module means all it defines."""
    parts = target.split(".")
    for size in range(len(parts), 0, -1):
        module = ".".join(parts[:size])
        if _source(module) is None:
            continue
        if size < len(parts):
            yield module, parts[size]
        elif module != PACKAGE:
            yield from ((module, name) for name in read_module(module).definitions)
        return


@cache
def _source(module: str) -> Path | None:
    folder = ROOT.joinpath(*module.split(".")[1:])
    if folder.is_dir() and (folder / "__init__.py").is_file():
        return folder / "__init__.py"
    file = folder.with_suffix(".py")
    return file if file.is_file() else None


@cache
def read_module(module: str) -> Module:
    """Parse one module of the package into its definitions."""
    path = _source(module)
    if path is None:
        raise ValueError(f"no module {module} under {ROOT}")
    return _parse(_snapshot().get(path) or path.read_bytes())


def _parse(source: bytes) -> Module:
    bodies: dict[str, list[ast.stmt]] = {}
    imports: dict[str, str] = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports.update(_imported(statement))
        elif not _is_string(statement):
            for name in _defined(statement) or {MODULE_BODY}:
                bodies.setdefault(name, []).append(statement)
    return Module(Definitions(bodies), imports)


def _imported(statement: ast.Import | ast.ImportFrom) -> dict[str, str]:
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
            for alias in statement.names
        }
    return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}


def _defined(statement: ast.stmt) -> set[str]:
    """Names a top-level statement binds; none for a loop or a `with`, which belong to the body of the module."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.For | ast.While | ast.With):
        return set()
    stores = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id for node in stores}


def _describe(body: list[ast.stmt]) -> Definition:
    text = "\n".join(_normal(statement) for statement in body)
    names: set[str] = set()
    chains: set[tuple[str, ...]] = set()
    imports: dict[str, str] = {}
    for statement in body:
        for node in _walk_outermost(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.update(_imported(node))
            elif isinstance(node, ast.Attribute):
                chain = _chain(node)
                if chain:
                    chains.add(chain)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text += _template_digests().get(node.value, "")
    return Definition(hashlib.sha256(text.encode()).hexdigest()[:16], names, chains, imports)


def _walk_outermost(node: ast.AST) -> Iterator[ast.AST]:
    """Walk, but take a dotted chain as one node: `a.b.c` must not also count as a bare use of `a`."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        is_leaf = isinstance(node, ast.Name | ast.Constant) or (isinstance(node, ast.Attribute) and _chain(node))
        if not is_leaf:
            pending.extend(reversed(list(ast.iter_child_nodes(node))))


def _chain(node: ast.Attribute) -> tuple[str, ...]:
    """("a", "b", "c") for a.b.c; empty if the chain starts at anything but a name."""
    parts = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        parts.append(value.attr)
        value = value.value
    return (value.id, *reversed(parts)) if isinstance(value, ast.Name) else ()


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _normal(node: ast.AST) -> str:
    """A dump without positions, strings that stand alone (docstrings) and what is empty.

    Empty fields, and empty pieces of f-strings, are left out because Python versions differ in which ones they have
    (`type_params`; a piece after a nested format such as `{x:>{width}}`).
    """
    parts = []
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or name in _WITHOUT_MEANING or value == []:
            continue
        if isinstance(node, ast.JoinedStr):
            value = [piece for piece in value if not (isinstance(piece, ast.Constant) and piece.value == "")]
        parts.append(f"{name}={_normal_value(value)}")
    return f"{type(node).__name__}({','.join(parts)})"


_WITHOUT_MEANING = {"ctx", "kind", "type_comment"}


def _normal_value(value: object) -> str:
    if isinstance(value, ast.AST):
        return _normal(value)
    if isinstance(value, list):
        kept = (item for item in value if not (isinstance(item, ast.stmt) and _is_string(item)))
        return f"[{','.join(_normal_value(item) for item in kept)}]"
    # Not repr: which characters it shows as they are differs with the Unicode tables of Python versions.
    return ascii(value)


@cache
def _template_digests() -> dict[str, str]:
    """Name of each file of `alignment_core/templates` -> a line with the digest of its content."""
    files = (path for path in (ROOT / "templates").iterdir() if path.is_file())
    return {path.name: f"\n{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files}
