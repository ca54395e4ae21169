"""A cluster of two hardware classes, and pools that choose their nodes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.end_to_end.jobs import (
    RUNTIME,
    files,
    run,
    run_well,
    slow_tokenizer,
    start,
    write_job,
    write_videos,
)
from tokpipe.audit import audit
from tokpipe.config.job import StoreOptions
from tokpipe.errors import NotFound
from tokpipe.formats.manifest import Totals
from tokpipe.storage import open_store
from tokpipe.verbs.status import status

CAPPED = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def wait(output: Path, until: Callable[[Totals], object]) -> Totals:
    for _ in range(1200):
        try:
            if until(totals := status(open_store(str(output), StoreOptions())).totals):
                return totals
        except NotFound:
            pass
        time.sleep(0.25)
    raise AssertionError(f"{output} never got there")


@pytest.mark.ray
def test_outputs_name_what_encoded_them_and_a_job_may_insist_on_one_class(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 24)
    quick = tmp_path / "quick"

    def job(name: str, hardware: str, **labels: str) -> Path:
        encode: dict[str, Any] = {"min_actors": 2, "max_actors": 2, "labels": labels}
        return write_job(
            tmp_path / f"{name}.yaml",
            files(tmp_path / "videos"),
            str(tmp_path / name),
            tokenizer=slow_tokenizer(quick, pause_s=1.0),
            encode={"device": "cpu", "hardware": hardware},
            runtime={**RUNTIME, "encode": encode, "decode": {"max_actors": 1}},
        )

    head = {"num_cpus": 1, "labels": {"isa": "full"}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, labels={"isa": "capped"}, env_vars=CAPPED)
        driver = start(job("any", "any"), cluster.address)
        both = wait(tmp_path / "any", lambda totals: len(totals.encoders) == 2)
        quick.touch()
        printed, _ = driver.communicate()
        assert driver.returncode == 0, printed
        assert " ".join(printed.split()).count("joins this output, which has clips encoded on") == 1
        quick.unlink()

        driver = start(job("same", "same", isa="capped"), cluster.address)
        (capped,) = wait(tmp_path / "same", lambda totals: totals.encoders).encoders
        driver.send_signal(signal.SIGTERM)
        printed, _ = driver.communicate()
        assert driver.returncode == 128 + signal.SIGTERM, printed
        assert "DEFAULT oneDNN SSE41" in capped
        (full,) = both.encoders.keys() - {capped}

        quick.touch()
        code, printed = run(job("same", "same", isa="!capped"), cluster.address)
        assert code == 2, printed
        assert "no node of the cluster can encode for this job" in printed
        assert (full in printed, capped in printed) == (True, True)
        run_well(job("same", "same"), cluster.address)
    finally:
        cluster.shutdown()
    for name, classes in {"any": {capped, full}, "same": {capped}}.items():
        report = audit(open_store(str(tmp_path / name), StoreOptions()))
        assert report.is_clean, list(report.lines())
        assert report.totals is not None
        assert report.totals.encoders.keys() == classes
        assert report.totals.encoders.total() == report.totals.num_clips == 72
