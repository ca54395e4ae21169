"""The same job from S3 to S3, on a real S3 server."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    kill,
    run_well,
    start,
    wait_until,
    write_job,
    write_videos,
)
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.formats.manifest.log import count_entries
from tokpipe.reader import open_output
from tokpipe.storage import open_store


def upload(bucket: S3Bucket, prefix: str, paths: list[Path]) -> None:
    store = open_store(f"{bucket.uri}/{prefix}", StoreOptions())
    for path in paths:
        store.put(path.name, path.read_bytes())


@pytest.mark.ray
@pytest.mark.s3
def test_s3_to_s3_gives_the_codes_of_disk_to_disk_even_when_killed(
    tmp_path: Path, s3_bucket: S3Bucket, ray_address: str
) -> None:
    paths = write_videos(tmp_path / "videos", 8)
    upload(s3_bucket, "raw", paths)
    local = write_job(tmp_path / "a.yaml", files(tmp_path / "videos"), str(tmp_path / "a"))
    remote = write_job(
        tmp_path / "b.yaml",
        {"kind": "files", "uri": f"{s3_bucket.uri}/raw/*.mp4"},
        f"{s3_bucket.uri}/out",
    )
    run_well(local, ray_address)
    # On a cluster of its own, whose processes are born with the credentials of this test.
    driver = start(remote)
    store = open_store(f"{s3_bucket.uri}/out", StoreOptions())
    wait_until(lambda: count_entries(store) >= 2 or driver.poll() is not None, every_s=0.3)
    assert driver.poll() is None, driver.communicate()
    kill(driver)
    run_well(remote)
    assert_complete(remote)
    # Ids differ, because URIs do; the codes must not.
    assert sorted(codes_of(remote).values()) == sorted(codes_of(local).values())
    assert s3_bucket.server.secret.encode() not in store.get("job.json")


@pytest.mark.ray
@pytest.mark.s3
def test_a_table_and_tars_on_s3_give_the_same_codes_and_carry_their_columns(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    paths = write_videos(tmp_path / "videos", 4)
    upload(s3_bucket, "videos/page1", paths)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["videoid", "name", "page_dir", "duration", "contentUrl"])
    for index, path in enumerate(paths):
        url = f"{s3_bucket.uri}/videos/page1/{path.name}"
        writer.writerow([path.stem, f'caption, "{index}"', "page1", "PT00H00M02S", url])
    store = open_store(f"{s3_bucket.uri}/meta", StoreOptions())
    store.put("webvid.csv", table.getvalue().encode())

    archive = tmp_path / "00000.tar"
    with tarfile.open(archive, "w") as tar:
        for index, path in enumerate(paths):
            tar.add(path, f"{index:09}.mp4")
            for ending, text in (("json", json.dumps({"n": index})), ("txt", f"text {index}")):
                member = tarfile.TarInfo(f"{index:09}.{ending}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
    upload(s3_bucket, "tars", [archive])

    sources = {
        "column": {
            "kind": "table",
            "uri": f"{s3_bucket.uri}/meta/webvid.csv",
            "uri_column": "contentUrl",
        },
        "template": {
            "kind": "table",
            "uri": f"{s3_bucket.uri}/meta/*.csv",
            "uri_template": f"{s3_bucket.uri}/videos/{{page_dir}}/{{videoid}}.mp4",
        },
        "tar": {"kind": "webdataset", "uri": f"{s3_bucket.uri}/tars/*.tar"},
    }
    codes = {}
    metadata = {}
    for name, source in sources.items():
        job = write_job(tmp_path / f"{name}.yaml", source, f"{s3_bucket.uri}/{name}")
        run_well(job)
        assert_complete(job)
        codes[name] = codes_of(job)
        config = load_job(job)
        metadata[name] = [c.metadata for c in open_output(config.output.uri).clips()]
    assert codes["column"] == codes["template"], "one clip, one id, however its URI was found"
    assert sorted(codes["tar"].values()) == sorted(codes["column"].values())
    assert {row["name"] for row in metadata["column"]} == {f'caption, "{i}"' for i in range(4)}
    assert {row["txt"] for row in metadata["tar"]} == {f"text {i}" for i in range(4)}
    assert {json.loads(row["json"])["n"] for row in metadata["tar"]} == {0, 1, 2, 3}
