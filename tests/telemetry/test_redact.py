"""Redaction masks every secret and nothing else."""

from urllib.parse import quote

import pytest

from tokpipe.telemetry.redact import redact, redact_nested, says_secret

ENVIRON = {
    "AWS_SECRET_ACCESS_KEY": "wJalr/XUtnFEMI+K7MDENG",
    "AWS_SESSION_TOKEN": "session0123456789",
    "AZURE_STORAGE_ACCOUNT_KEY": "azure+key/12345==",
    "HF_TOKEN": "hf_abcdefghijkl",
    "DB_PASSWORD": "pw123456",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://ann:pw@host/a.mp4", "ftp://***@host/a.mp4"),
        ("https://h/a?x=1&X-Amz-Signature=abc&y=2", "https://h/a?x=1&X-Amz-Signature=***&y=2"),
        ("https://h/a?X-Amz-Security-Token=a%2Fb", "https://h/a?X-Amz-Security-Token=***"),
        ("https://h/a?X-Goog-Signature=ab12", "https://h/a?X-Goog-Signature=***"),
        ("https://h/a?sv=1&sig=a%3D", "https://h/a?sv=1&sig=***"),
        ("url='https://h/a?token=t', s", "url='https://h/a?token=***', s"),
        ("https://h/a?api_key=t&password=u", "https://h/a?api_key=***&password=***"),
    ],
)
def test_secrets_in_uris_are_masked(text: str, shown: str) -> None:
    assert redact(text, {}) == shown
    assert redact(shown, {}) == shown


def test_values_of_secret_variables_are_masked_also_when_url_encoded() -> None:
    for value in ENVIRON.values():
        text = redact(f"Error('bad {value}!') at line 3", ENVIRON)
        assert text == "Error('bad ***!') at line 3"
        assert redact(f"s3://b/{quote(value, safe='')}", ENVIRON) == "s3://b/***"


def test_other_text_is_unchanged() -> None:
    weights = "s3://bucket/tokenizers/a.safetensors"
    environ = {
        "TOKENIZER_WEIGHTS": weights, "GOOGLE_APPLICATION_CREDENTIALS": "/data/a",
        "USE_TOKEN": "true", "HOME": "/data/a/home",
    }  # fmt: skip
    for text in (
        *("abfs://container@account.dfs.core.windows.net/a", weights, "12:30 user: a@b"),
        *("https://host:8080/a@b.mp4?v=abc&t=10", "/data/a?tokenizer=movqgan", "true"),
    ):
        assert redact(text, environ) == text


def test_names_of_secrets_are_known() -> None:
    secret = {"key", "aws_secret_access_key", "secretKey", "session-token", "account_key", "sas"}
    others = {"endpoint_url", "region_name", "tokenizer", "monkey", "anon"}
    assert {name for name in secret | others if says_secret(name)} == secret


def test_nested_values_are_masked_by_content_and_by_name() -> None:
    settings = {
        "sources": [{"uri": "ftp://ann:pw@host/a.mp4"}],
        "options": {"secret": "plain", "keys": ["a"], "api_key": ["b", "c"]},
        "fps": 8.0,
    }
    assert redact_nested(settings) == {
        "sources": [{"uri": "ftp://***@host/a.mp4"}],
        "options": {"secret": "***", "keys": ["a"], "api_key": ["***", "***"]},
        "fps": 8.0,
    }
