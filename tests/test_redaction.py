"""Secrets are hidden wherever a text is shown, and nothing else is."""

from typing import Any

import pytest

from alignment_core.redaction import HIDDEN, redact, redact_all, secret_in
from flows.settings import load_config


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:s3cr3t@host:5000/x", "http://***@host:5000/x"),
        ("s3://AKIA1:wJal/rXUt+n@bucket/store", "s3://***@bucket/store"),
        ("postgresql+asyncpg://u:p@s@db/prefect", "postgresql+asyncpg://***@db/prefect"),
        ("API request to http://a:b@h:1/api failed (see http://c:d@h)", "API request to http://***@h:1/api failed (see http://***@h)"),
        ("https://hf_token@hub", "https://***@hub"),
        ("https://h/x?user=a&access_key=k1&n=2", "https://h/x?user=a&access_key=***&n=2"),
        ("https://h/x?X-Amz-Signature=abc", "https://h/x?X-Amz-Signature=***"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////root/a@b/mlflow.db", "sqlite:////root/a@b/mlflow.db"),
        ("write to a@b.org", "write to a@b.org"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_credentials(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_values_of_secret_variables_are_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:hf_abcdef-longer")
    monkeypatch.setenv("MY_PASSWORD", "pw")  # too short to be looked for
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsehood")
    assert (
        redact("refused: hf_abcdef, admin:hf_abcdef-longer, pw, falsehood")
        == f"refused: {HIDDEN}, {HIDDEN}, pw, falsehood"
    )
    assert redact_all({"a": ["hf_abcdef", 1, None], "b": {"c": "x"}}) == {"a": [HIDDEN, 1, None], "b": {"c": "x"}}


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"data": {"train": "s3://k:v@b/t.jsonl"}}, "data.train"),
        ({"grpo": {"starts": ["base", "https://t@h/x"]}}, "grpo.starts.1"),
        ({"model": {"source": "Qwen/Qwen2.5"}, "seed": 3}, None),
    ],
)
def test_a_setting_with_a_secret_is_found(settings: dict[str, Any], place: str | None) -> None:
    assert secret_in(settings) == place


def test_a_study_with_a_secret_among_its_settings_is_refused_without_repeating_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    for value in ("s3://key:secret@bucket/rows.jsonl", "rows-hf_0123456789abcdef.jsonl"):
        with pytest.raises(ValueError, match=r"data\.train holds a password or another secret") as caught:
            load_config("smoke", {"data.train": value})
        assert "secret@" not in str(caught.value)
        assert "hf_0" not in str(caught.value)
