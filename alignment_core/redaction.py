"""Secrets kept out of whatever is shown or written: passwords within URLs, and what secret variables hold.

Credentials belong in the environment. A URL or an error that is shown, logged or sent to a tracker goes through
`redact` first; a setting that holds a password is refused (`secret_in`), since settings are written to manifests.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
USERINFO = re.compile(r"(?<=://)(?:[^\s/'\"?#]*@|[^\s/@:'\"]+:(?!\d+/)[^\s'\"]*@)")
"""Between `://` and `@`; the second form is a password with a slash in it, as secret keys of S3 have."""
QUERY = re.compile(
    r"(?i)(?<=[?&])((?:[a-z_-]*(?:password|passwd|token|secret|signature|credential|api_key|access_key)[a-z_-]*)=)[^&\s'\"]+"
)
SECRET_VARIABLE = re.compile(r"(?i)(password|passwd|token|secret|auth_string|api_key|access_key|access_key_id)$")
SHORTEST = 6
"""A shorter value is no secret worth the name, and would be found in every other word."""
UNMISTAKABLE = 16
"""A value so long is not found in a setting by chance."""


def redact(text: str) -> str:
    """`text` with user and password of URLs, secret query values and the values of secret variables hidden."""
    for value in secret_values(os.environ):
        text = text.replace(value, HIDDEN)
    return QUERY.sub(rf"\1{HIDDEN}", USERINFO.sub(f"{HIDDEN}@", text))


def redact_all(value: Any) -> Any:
    """Nested plain data with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: redact_all(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of the variables whose names say that they hold a secret, longest first."""
    found = {value for name, value in environment.items() if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=lambda value: (-len(value), value))


def secret_in(value: Any, name: str = "") -> str | None:
    """Dotted name of the first setting whose text holds a secret; None if there is none."""
    if isinstance(value, Mapping):
        found = (secret_in(item, f"{name}.{key}" if name else str(key)) for key, item in value.items())
        return next(filter(None, found), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (secret_in(item, f"{name}.{index}") for index, item in enumerate(value))), None)
    if not isinstance(value, str):
        return None
    known = any(len(one) >= UNMISTAKABLE and one in value for one in secret_values(os.environ))
    return name if known or USERINFO.search(value) or QUERY.search(value) else None
