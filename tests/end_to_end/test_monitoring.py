"""The metrics and the log of a run say what its manifest holds."""

import json
import re
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import duckdb
import pytest
import ray

from tests.end_to_end.jobs import RUNTIME, files, finish, start, write_job, write_videos
from tests.runtime.test_metrics import exposed
from tokpipe.config import load_job
from tokpipe.formats import job_record
from tokpipe.formats.manifest import ManifestEntry, Totals, iter_entries, load_state
from tokpipe.runtime.assemble import JobOutput
from tokpipe.runtime.metrics import METRICS
from tokpipe.storage import Store
from tokpipe.telemetry.logs import EventName

SECRET = "pl4nted-secret-of-a-name"
SAMPLE = re.compile(r"^(ray_tokpipe_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Watched:
    """A small job that has run, with its metrics and its log."""

    job: Path
    code: int
    printed: str
    scraped: str
    lines: list[dict[str, Any]]
    log: str
    plan_id: str
    totals: Totals
    entries: list[ManifestEntry]


@pytest.fixture(scope="module")
def watched(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched")
    write_videos(folder / "videos", 3)
    (folder / "videos/empty.mp4").touch()
    (folder / f"videos/{SECRET}.mp4").write_text("no video")
    log = folder / "logs/run.jsonl"
    job = write_job(
        folder / "job.yaml",
        files(folder / "videos"),
        str(folder / "out"),
        dataset=f"watched-{folder.name}",
        max_rejected_fraction=0.05,
        runtime={**RUNTIME, "progress_interval_s": 0.5, "log_path": str(log)},
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("A_SECRET", SECRET)
        code, printed = finish(start(job, ray_address))
    store = Store(str(folder / "out"), load_job(job).storage)
    record = job_record.read(store)
    return Watched(
        job,
        code,
        printed,
        _scrape(ray_address, folder.name),
        [json.loads(line) for line in log.read_text().splitlines()],
        log.read_text(),
        record.plan["plan_id"],
        load_state(store, record.num_rows).totals,
        list(iter_entries(store)),
    )


def _scrape(address: str, dataset: str) -> str:
    """Read the endpoint that Ray has for Prometheus on the one node of the cluster.

    What a driver passed on last arrives after it has ended, later on a busy machine.
    """
    ray.init(address=address, log_to_driver=False)
    try:
        (node,) = (node for node in ray.nodes() if node["Alive"])
    finally:
        ray.shutdown()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    before = -1
    for _ in range(60):
        with urllib.request.urlopen(url, timeout=300) as answer:
            text = str(answer.read().decode())
        if before == (now := text.count(dataset)) > 0:
            break
        before = now
        time.sleep(1)
    return text


def _values(watched: Watched, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Values of one metric of this job by its labels."""
    found: dict[tuple[str, ...], float] = {}
    for sample, text, value in SAMPLE.findall(watched.scraped):
        own = dict(LABEL.findall(text))
        if sample == name and own["plan_id"] == watched.plan_id[:12]:
            key = tuple(own[label] for label in labels)
            assert key not in found, f"{name} has two series for {key}"
            found[key] = float(value)
    return found


@pytest.mark.ray
def test_too_many_rejected_clips_fail_the_job_with_their_own_code(watched: Watched) -> None:
    assert watched.code == 4, watched.printed
    assert "2 rejected: " in watched.printed
    assert "not_a_video 1" in watched.printed


@pytest.mark.ray
def test_a_scrape_finds_what_the_manifest_holds(watched: Watched) -> None:
    totals = watched.totals
    assert totals.num_clips == 9  # three videos of 20 frames, cut into three each
    for name, expected in {
        "ray_tokpipe_frames_total": totals.num_frames,
        "ray_tokpipe_codes_total": totals.num_codes,
        "ray_tokpipe_written_bytes_total": totals.size_bytes,
        "ray_tokpipe_plan_rows": 5,
        "ray_tokpipe_plan_rows_done": 5,
    }.items():
        assert _values(watched, name) == {(): expected}, name
    clips = dict.fromkeys([("decode",), ("encode",), ("write",)], 9.0)
    assert _values(watched, "ray_tokpipe_clips_total", "stage") == clips
    rejected = {(reason,): number for reason, number in totals.rejected.items()}
    assert rejected == {("empty",): 1, ("not_a_video",): 1}
    assert _values(watched, "ray_tokpipe_rejected_clips_total", "reason") == rejected
    videos = (watched.job.parent / "videos").glob("clip*.mp4")
    fetched = _values(watched, "ray_tokpipe_source_bytes_total")[()]
    assert fetched >= sum(path.stat().st_size for path in videos)
    seconds = _values(watched, "ray_tokpipe_stage_seconds_total", "stage", "activity")
    assert seconds["encode", "encode"] > 0
    assert _values(watched, "ray_tokpipe_actor_seconds_total", "stage")["encode",] > 0
    for share in ("speed_of_light", "goodput"):
        assert 0 < _values(watched, f"ray_tokpipe_{share}_ratio")[()] <= 1
    assert set(_values(watched, "ray_tokpipe_actors", "stage").values()) <= {1.0, 2.0}


@pytest.mark.ray
def test_a_scrape_finds_declared_metrics_alone(watched: Watched) -> None:
    found = set(re.findall(r"^# TYPE (ray_tokpipe_\w+) (\w+)$", watched.scraped, re.MULTILINE))
    declared = {(exposed(one), one.kind) for one in METRICS}
    assert found <= declared
    # Counters of what did not happen have no series, nor the ways in which GPUs compute.
    assert {name for name, _ in declared - found} <= {
        "ray_tokpipe_encoder_paths",
        "ray_tokpipe_lost_actors_total",
    }


@pytest.mark.ray
def test_the_log_has_each_shard_and_each_rejected_clip_once(watched: Watched) -> None:
    def of(event: str) -> list[dict[str, Any]]:
        return [line for line in watched.lines if line["event"] == event]

    assert {line["event"] for line in watched.lines} <= set(get_args(EventName))
    assert {line["plan_id"] for line in watched.lines} == {watched.plan_id}
    assert len({line["driver"] for line in watched.lines}) == 1
    shards = [receipt for entry in watched.entries for receipt in entry.shards]
    assert Counter(line["shard"] for line in of("shard_committed")) == Counter(
        receipt.shard for receipt in shards
    )
    assert sum(line["num_codes"] for line in of("shard_committed")) == watched.totals.num_codes
    rejected = [one for entry in watched.entries for one in entry.rejected]
    assert Counter((line["clip_id"], line["reason"]) for line in of("clip_rejected")) == Counter(
        (one.ref.clip_id, one.reason) for one in rejected
    )
    assert {line["seq"] for line in of("committed")} == {
        entry.seq for entry in watched.entries if entry.claim is None
    }
    assert of("progress")
    assert {line["stage"] for line in of("actor_up")} == {"decode", "encode", "write"}
    (ended,) = of("run_ended")
    assert (ended["outcome"], ended["num_clips"]) == ("done", watched.totals.num_clips)
    assert watched.lines[-1] == ended


@pytest.mark.ray
def test_the_log_has_no_secrets(watched: Watched) -> None:
    assert SECRET not in watched.log
    assert "***.mp4" in watched.log


@pytest.mark.ray
def test_a_job_resumes_with_another_log(watched: Watched) -> None:
    job = load_job(watched.job)
    runtime = job.runtime.model_copy(update={"log_path": None})
    found = JobOutput(job.model_copy(update={"runtime": runtime}))  # rejects other settings
    assert found.record is not None
    assert found.record.job["runtime"]["log_path"] == job.runtime.log_path


@pytest.mark.ray
def test_the_queries_of_the_page_work(watched: Watched, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/monitoring.md").read_text()
    (block,) = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    log = tmp_path / "run.jsonl"
    log.write_text(watched.log)
    by_event, by_reason = (
        duckdb.execute(query.replace("logs/webvid.jsonl", str(log))).fetchall()
        for query in block.split(";")
        if query.strip()
    )
    assert {row[0] for row in by_event} == {line["event"] for line in watched.lines}
    assert sum(row[2] for row in by_event) == len(watched.lines)
    assert sorted(row[:2] for row in by_reason) == [("empty", 1), ("not_a_video", 1)]
