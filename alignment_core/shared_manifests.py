"""What a manifest that came from elsewhere may say, and where the files that it lists lie."""

import hashlib
import re
from pathlib import PurePosixPath

from alignment_core.manifest import MANIFEST, Manifest, canonical_json

PART = re.compile(r"[A-Za-z0-9][\w.-]*")


def content_folder(manifest: Manifest) -> str:
    """Name of the folder of one publication: made of the names and digests of all its files."""
    described = {name: entry.sha256 for name, entry in manifest.files.items()}
    return hashlib.sha256(canonical_json(described).encode()).hexdigest()[:16]


def names_flaw(manifest: Manifest) -> str:
    """What is wrong with the names that a manifest from elsewhere lists, in words; empty if nothing."""
    for name in manifest.files:
        path = PurePosixPath(name)
        if not path.parts or path.as_posix() != name or path.is_absolute() or ".." in path.parts or "\0" in name:
            return f"it lists {name!r}, which is no plain name"
        if path.parts[0] == MANIFEST or any(parent.as_posix() in manifest.files for parent in path.parents):
            return f"it lists {name!r}, which another file of the artifact rules out"
    return ""


def is_plain(name: str) -> bool:
    """Whether a text can be the name of a stage or a key."""
    return PART.fullmatch(name) is not None


def require_plain(*names: str) -> None:
    """Raise ValueError for a text that cannot be the name of a stage or a key."""
    for name in names:
        if not is_plain(name):
            raise ValueError(f"{name!r} is no name of a stage or a key")
