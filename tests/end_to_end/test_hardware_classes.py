"""A cluster of two hardware classes, and pools that choose their nodes."""

import signal
import time
from pathlib import Path

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
from tokpipe.audit import Audit
from tokpipe.config.job import StoreOptions
from tokpipe.reader import open_output
from tokpipe.storage import Store

CAPPED = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


@pytest.mark.ray
def test_outputs_name_what_encoded_them_and_a_job_may_insist_on_one_class(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 8)
    output, quick = tmp_path / "out", tmp_path / "quick"

    def job(hardware: str, isa: str) -> Path:
        encode = {"max_actors": 1, "labels": {"isa": isa}}
        return write_job(
            tmp_path / "job.yaml",
            files(tmp_path / "videos"),
            str(output),
            tokenizer=slow_tokenizer(quick, pause_s=1.0),
            encode={"device": "cpu", "hardware": hardware},
            runtime={**RUNTIME, "encode": encode, "decode": {"max_actors": 1}},
        )

    head = {"num_cpus": 1, "labels": {"isa": "full"}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, labels={"isa": "capped"}, env_vars=CAPPED)
        driver = start(job("same", "capped"), cluster.address)
        while not list(output.glob("shards/*")) and driver.poll() is None:
            time.sleep(0.25)
        driver.send_signal(signal.SIGTERM)
        printed, _ = driver.communicate()
        assert driver.returncode == 128 + signal.SIGTERM, printed
        (capped,) = open_output(str(output)).totals.encoders
        assert " DEFAULT " in capped
        assert capped.endswith("oneDNN <= SSE41")

        quick.touch()
        code, unfit = run(job("same", "!capped"), cluster.address)
        assert code == 2, unfit
        assert "no node of the cluster can encode for this job" in unfit
        assert capped in unfit
        printed = " ".join(run_well(job("any", "in(full, other)"), cluster.address).split())
    finally:
        cluster.shutdown()
    report = Audit(Store(str(output), StoreOptions()))
    assert report.is_clean, list(report.lines())
    assert report.totals is not None
    (full,) = report.totals.encoders.keys() - {capped}
    assert full in unfit
    assert printed.count(f"{full} joins this output, which has clips encoded on {capped}") == 1
    assert report.totals.encoders.total() == report.totals.num_clips == 24
