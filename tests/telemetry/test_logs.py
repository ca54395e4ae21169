"""Events as lines: JSON that parses and holds no secret, and warnings that do not flood."""

import io
import json
import logging
from pathlib import Path

import pytest

from tests.formats.formats_helpers import claimed
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.storage import Store
from tokpipe.telemetry.logs import LOGGER, driver_log, log_event, start_worker_log


def nobody(_: str) -> None:
    raise AssertionError("no warning is expected")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_a_line_with_its_context(tmp_path: Path) -> None:
    path = tmp_path / "new/run.jsonl"
    for number in (1, 2):  # a second run appends to the same file
        with driver_log(str(path), nobody, {"plan_id": "p"}):
            log_event("committed", "entry\nof two lines", seq=number, shards=("a", "b"))
            logging.getLogger("tokpipe.media").info("%s of %d", "one", 2)
    first, other, second, _ = lines(path)
    assert str(first.pop("time")).endswith("+00:00")
    assert first == {
        "level": "info", "event": "committed", "message": "entry\nof two lines",
        "plan_id": "p", "seq": 1, "shards": ["a", "b"],
    }  # fmt: skip
    assert (other["event"], other["logger"]) == ("log", "tokpipe.media")
    assert (other["message"], other["plan_id"]) == ("one of 2", "p")
    assert second["seq"] == 2


def test_secrets_are_masked_in_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", 'quo"ted-secret-1')
    path = tmp_path / "run.jsonl"
    with driver_log(str(path), lambda _: None, {"plan_id": "p"}):
        secret = 'quo"ted-secret-1'
        log_event("lease_failed", secret, level=logging.WARNING, deep={"a": [f"x {secret}"]})
        try:
            raise ValueError(secret)
        except ValueError:
            LOGGER.exception("failed with http://user:passw@host/x")
    first, second = lines(path)
    assert first["message"] == "***"
    assert first["deep"] == {"a": ["x ***"]}
    assert "ValueError: ***" in str(second["traceback"])
    assert second["message"] == "failed with http://***@host/x"
    assert "ted-secret" not in path.read_text()


def test_without_a_path_only_warnings_are_shown_and_not_repeated() -> None:
    said: list[str] = []
    with driver_log(None, said.append, {}):
        log_event("actor_up", "is up")
        for number in range(100):
            log_event("actor_lost", f"actor {number} was lost", level=logging.WARNING)
        log_event("node_avoided", "a disk is full", level=logging.WARNING)
        log_event("run_failed", "shown when the run ends", level=logging.ERROR)
    assert said == ["warning: actor 0 was lost", "warning: a disk is full"]
    assert not LOGGER.handlers


def test_a_log_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = driver_log(f"{tmp_path}/file/run.jsonl", nobody, {})
    with pytest.raises(ConfigError, match=r"log_path: .*/file/run.jsonl cannot be written"), log:
        pass


def test_workers_write_json_when_the_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "level", logging.NOTSET)
    start_worker_log({}, as_json=False)
    assert not LOGGER.handlers
    context = {"plan_id": "p", "stage": "decode", "actor": 3}
    start_worker_log(context, as_json=True)
    logging.getLogger("tokpipe.stages.encode").warning("out of memory")
    line = json.loads(stream.getvalue())
    assert context.items() <= line.items()
    assert (line["level"], line["message"]) == ("warning", "out of memory")


def test_a_claim_is_an_event(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    store = Store(str(tmp_path / "out"), StoreOptions())
    with driver_log(str(path), nobody, {}):
        claimed(store, 5, "first")
        claimed(store, 5, "second")
    found = [(line["event"], line["seq"]) for line in lines(path)]
    assert found == [("output_claimed", 0), ("output_claimed", 1)]
