"""A job from S3 to S3, on a real S3 server, with a table and tars as sources."""

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
    codes_without_ray,
    files,
    run_well,
    write_job,
    write_videos,
)
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.plan import PlanReader, write_plan
from tokpipe.reader import open_output
from tokpipe.storage import Store


@pytest.mark.ray
@pytest.mark.s3
def test_a_table_and_tars_on_s3_yield_the_codes_of_local_files_and_carry_their_columns(
    tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    paths = write_videos(tmp_path / "videos", 4)
    store = Store(s3_bucket.uri, StoreOptions())
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["videoid", "name", "page_dir", "duration", "contentUrl"])
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for index, path in enumerate(paths):
            key = f"videos/page1/{path.name}"
            store.put(key, path.read_bytes())
            url = f"{s3_bucket.uri}/{key}"
            writer.writerow([path.stem, f'caption, "{index}"', "page1", "PT00H00M02S", url])
            tar.add(path, f"{index:09}.mp4")
            for suffix, text in (("json", json.dumps({"n": index})), ("txt", f"text {index}")):
                member = tarfile.TarInfo(f"{index:09}.{suffix}")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text.encode()))
    store.put("meta/webvid.csv", table.getvalue().encode())
    store.put("tars/00000.tar", archive.getvalue())

    tars = {"kind": "webdataset", "uri": f"{s3_bucket.uri}/tars/*.tar"}
    by_column = {
        "kind": "table",
        "uri": f"{s3_bucket.uri}/meta/webvid.csv",
        "uri_column": "contentUrl",
    }
    job = write_job(tmp_path / "job.yaml", [by_column, tars], f"{s3_bucket.uri}/out")
    run_well(job)  # on a cluster whose processes inherit the credentials of this test
    assert_complete(job)
    local = write_job(tmp_path / "b.yaml", files(tmp_path / "videos"), str(tmp_path / "b"))
    # Ids differ, because URIs do; the codes must not.
    wanted = list(codes_without_ray(local).values())
    assert sorted(codes_of(job).values()) == sorted(2 * wanted)
    assert s3_bucket.server.secret.encode() not in store.get("out/job.json")
    carried = [clip.metadata for clip in open_output(f"{s3_bucket.uri}/out").clips()]
    assert {row.get("name") for row in carried} - {None} == {f'caption, "{i}"' for i in range(4)}
    assert {row.get("txt") for row in carried} - {None} == {f"text {i}" for i in range(4)}
    numbers = {json.loads(row["json"])["n"] for row in carried if row.get("json")}
    assert numbers == {0, 1, 2, 3}

    # A clip has one id, however its URI was found.
    by_template = {
        "kind": "table",
        "uri": f"{s3_bucket.uri}/meta/*.csv",
        "uri_template": f"{s3_bucket.uri}/videos/{{page_dir}}/{{videoid}}.mp4",
    }
    column_ids, template_ids = (
        row_ids(write_job(tmp_path / f"{name}.yaml", source, f"{s3_bucket.uri}/{name}"))
        for name, source in (("column", by_column), ("template", by_template))
    )
    assert len(column_ids) == 4
    assert column_ids == template_ids


def row_ids(job: Path) -> set[str]:
    config = load_job(job)
    store = Store(config.output.uri, config.storage)
    plan = write_plan(config, store, "driver")
    return {item.row_id for item in PlanReader(store, plan).items(range(plan.num_rows))}
