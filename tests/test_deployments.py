"""Every entry of prefect.yaml: known keys, a flow that imports, parameters that validate, a preset that loads."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.presets import scale_names, study_names
from tasks.pools import GPU_POOLS

ROOT = Path(__file__).parents[1]
KEYS = {"name", "entrypoint", "description", "tags", "work_pool", "parameters"}
ENTRIES: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]


def named(entry: dict[str, Any]) -> str:
    """<flow file>/<deployment>."""
    return f"{Path(entry['entrypoint'].split(':')[0]).stem}/{entry['name']}"


@pytest.mark.parametrize("entry", ENTRIES, ids=named)
def test_entry_is_a_real_flow_with_valid_parameters(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.flows import load_flow_from_entrypoint

    from flows.settings import load_config

    monkeypatch.chdir(ROOT)
    assert set(entry) == KEYS
    assert set(entry["work_pool"]) == {"name", "job_variables"}
    flow: Any = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    assert flow.name == Path(entry["entrypoint"].split(":")[0]).stem.replace("_", "-")
    if flow.name == "stage":
        assert entry["name"] == entry["work_pool"]["name"]
        return
    parameters = flow.validate_parameters(entry["parameters"])
    assert load_config(parameters["preset"]).name == entry["name"]
    form = flow.parameters.properties
    assert all(form[name].get("description") for name in form), form


def test_every_flow_and_study_is_deployed_at_every_scale_and_stages_in_every_gpu_pool() -> None:
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "flows").glob("*.py")}
    flows = {name for name, source in sources.items() if re.search(r"^@(study_)?flow\b", source, re.M)}
    scaled = {f"{flow}/{scale}" for flow in flows - {"stage"} for scale in scale_names()}
    studies = {f"study/{study}-{scale}" for study in study_names() for scale in scale_names() if scale != "smoke"}
    expected = scaled | studies | {f"stage/{pool}" for pool in GPU_POOLS}
    assert sorted(named(entry) for entry in ENTRIES) == sorted(expected)


@pytest.mark.parametrize("entry", [one for one in ENTRIES if "/" in one["parameters"].get("preset", "")], ids=named)
def test_a_shipped_study_is_deployed_under_its_own_name(entry: dict[str, Any]) -> None:
    scale, study = entry["parameters"]["preset"].split("/")
    assert named(entry) == f"study/{study}-{scale}"
    assert entry["tags"] == next(one["tags"] for one in ENTRIES if one["name"] == scale)


def test_gpu_bound_work_goes_to_the_gpu_pool_and_what_spreads_to_the_one_without() -> None:
    for entry in ENTRIES:
        flow = named(entry).partition("/")[0]
        if flow == "stage":
            continue
        large, spreads = entry["name"].endswith("1.5b"), flow in {"study", "analyze", "report"}
        whole = large and not spreads and flow != "prepare"
        assert entry["work_pool"]["name"] == ("h100" if whole else "cpu"), named(entry)
        assert entry["parameters"].get("executor", "local") == ("work-pool" if large and spreads else "local")
