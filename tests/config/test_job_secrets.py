"""A job file that contains a secret is rejected, and the message does not repeat it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokpipe.config.load import parse_job
from tokpipe.errors import ConfigError

PLANTED = "pl4nted-s3cret"
JOB = yaml.safe_load((Path(__file__).parent / "native_job.yaml").read_text())
TABLE = {"kind": "table", "uri": "t.csv"}
AWS = {"aws_secret_access_key": PLANTED}
SIGNED = f"https://h/t.csv?X-Amz-Signature={PLANTED}"


def rejection(changes: dict[str, Any], environ: dict[str, str] | None = None) -> str:
    text = yaml.safe_dump({**JOB, **changes})
    with pytest.raises(ConfigError) as raised:
        parse_job(text, name="job.yaml", root=Path("/p"), environ=environ or {})
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sources.0.uri", {"sources": [{"kind": "files", "uri": f"ftp://u:{PLANTED}@h/*.mp4"}]}),
        ("sources.0.uri", {"sources": [{**TABLE, "uri": SIGNED, "uri_column": "u"}]}),
        ("sources.0.uri_template", {"sources": [{**TABLE, "uri_template": SIGNED}]}),
        ("output.uri", {"output": {"uri": f"https://h/o?sig={PLANTED}"}}),
        ("output.uri", {"output": {"uri": "s3://${MY_TOKEN}/o"}}),
        ("output.uri", {"output": {"uri": "https://${LOGIN}@h/o"}}),
        ("tokenizer.weights", {"tokenizer": {**JOB["tokenizer"], "weights": SIGNED}}),
    ],
)
def test_secrets_in_uris_are_rejected_and_not_printed(key: str, changes: dict[str, Any]) -> None:
    message = rejection(changes, {"MY_TOKEN": PLANTED, "LOGIN": f"me:{PLANTED}"})
    assert f"{key}: contains a password, a signature or another secret" in message
    assert PLANTED not in message


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("s3.secret", {"s3": {"secret": PLANTED}}),
        ("s3.client_kwargs.aws_secret_access_key", {"s3": {"client_kwargs": AWS}}),
        ("s3.hops[1].password", {"s3": {"hops": ["a", {"password": PLANTED}]}}),
        ("s3.endpoint_url", {"s3": {"endpoint_url": f"http://me:{PLANTED}@h"}}),
        ("s3.urls[0]", {"s3": {"urls": [f"http://h?sig={PLANTED}"]}}),
        ("az.connection_string", {"az": {"connection_string": PLANTED}}),
    ],
)
def test_a_secret_anywhere_in_the_options_is_rejected_without_printing_it(
    key: str, options: dict[str, Any]
) -> None:
    message = rejection({"storage": {"options": options}})
    assert f"storage.options.{key} looks like a credential" in message
    assert PLANTED not in message
