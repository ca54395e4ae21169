"""Runs the programs of docs/trainers.md, and counts the clips that each epoch trains on."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import S3Bucket
from tests.pages import REPOSITORY, blocks_of
from tests.reader.reader_helpers import write_clips
from tokpipe.config.job import StoreOptions
from tokpipe.storage import Store

PROGRAMS = {block.title: block.code for block in blocks_of("docs/trainers.md") if block.title}
SHARED = ("my_model.py", "my_data.py")
NUM_CLIPS, NUM_EPOCHS = 27, 3

RECORDING = """

import hashlib, json, os, time

_forward, _folder, _num_steps, _begin = Model.forward, {folder!r}, 0, time.time_ns()


def forward(self, tokens):
    global _num_steps
    _num_steps += 1
    distributed = torch.distributed
    is_running = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if is_running else 0
    if _num_steps == {kill_at} and not os.path.exists(f"{_folder}/killed"):
        time.sleep(1 - rank)  # both ranks have to reach this step
        open(f"{_folder}/killed", "w").close()
        os._exit(9)
    line = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in tokens.cpu()]
    with open(f"{_folder}/steps-{rank}-{_begin}", "a") as file:
        file.write(json.dumps(line) + "\\n")
    return _forward(self, tokens)


Model.forward = forward
"""
"""Added to the model of the page: writes down the clips of each step, and kills a step once."""


def write_programs(folder: Path, kill_at: int | None = None) -> None:
    write_clips(Store(str(folder / "out/demo"), StoreOptions()), (9, 3, 8, 7))
    for name, code in PROGRAMS.items():
        (folder / name).write_text(code)
    recording = RECORDING.replace("{folder!r}", repr(str(folder)))
    recording = recording.replace("{kill_at}", str(kill_at))
    (folder / "my_model.py").write_text(PROGRAMS["my_model.py"] + recording)


def run(folder: Path, name: str, num_ranks: int | None = 2, is_killed: bool = False) -> None:
    """Run a program with torchrun; without ``num_ranks`` it starts its ranks itself."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    paths = [str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, *(words if num_ranks else ()), name],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if is_killed:
        assert done.returncode != 0
        assert (folder / "killed").exists(), done.stderr[-20000:]
        return
    # C++ destructors of a library abort now and then, once Python has ended.
    if "terminate called without an active exception" not in done.stderr:
        assert done.returncode == 0, done.stderr[-20000:]


def steps_of(folder: Path, rank: int, wanted: int) -> list[list[str]]:
    """Return the clips of each step of a rank, without those that a killed run had not saved."""
    steps: list[list[str]] = []
    for path in sorted(folder.glob(f"steps-{rank}-*"), key=lambda path: int(path.name[8:])):
        new = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [*steps[: wanted - len(new)], *new] if steps else new
    assert len(steps) == wanted
    return steps


def check_steps(folder: Path, num_ranks: int = 2, num_workers: int = 1) -> None:
    """Check the clips of each step: the same number of steps on each rank, no clip twice."""
    num_readers = num_ranks * num_workers
    size = num_workers * -(-(NUM_CLIPS // num_readers) // 2)
    ranks = [steps_of(folder, rank, NUM_EPOCHS * size) for rank in range(num_ranks)]
    epochs = [
        [[clip for step in steps[size * n : size * (n + 1)] for clip in step] for steps in ranks]
        for n in range(NUM_EPOCHS)
    ]
    wanted = NUM_CLIPS // num_readers * num_readers
    for epoch in epochs:
        counts = Counter(clip for rank in epoch for clip in rank)
        assert max(counts.values()) == 1
        assert counts.total() == wanted
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({clip for epoch in epochs for rank in epoch for clip in rank}) == NUM_CLIPS


@pytest.mark.parametrize(
    ("name", "library", "num_ranks", "num_workers"),
    [
        ("ddp.py", "torch", 2, 2),
        ("ddp.py", "torch", 4, 2),
        ("lit.py", "lightning", 2, 1),
        ("with_accelerate.py", "accelerate", 2, 1),
        ("hf.py", "accelerate", 2, 1),
    ],
)
def test_every_epoch_trains_on_other_clips_each_once_although_the_run_is_killed(
    name: str, library: str, num_ranks: int, num_workers: int, tmp_path: Path
) -> None:
    if not find_spec(library):
        pytest.skip(f"{library} is not installed")
    write_programs(tmp_path, kill_at=11)  # in the second epoch, or the third
    run(tmp_path, name, num_ranks, is_killed=True)
    run(tmp_path, name, num_ranks)
    check_steps(tmp_path, num_ranks, num_workers)


MIX = """
from tokpipe.reader import ClipMix, CodeCache, open_output
from tokpipe.reader.dataset import ClipDataset


def dataset():
    outputs = [open_output(f"{uri}/{name}") for name in ("a", "b", "c")]
    caches = [CodeCache(output, "out/cache", allow_partial=True) for output in outputs]
    return ClipDataset(ClipMix(caches, [1, 1, 1], seed=0, even="drop"))
"""


SEQUENCES = (
    MIX
    + """

from tokpipe.reader import TokenSequences
from tokpipe.reader.compose import Template, Vocabulary

clips = dataset


def dataset():
    special = {"bov": 8192, "eof": 8193, "eov": 8194, "pad": 8195}
    vocabulary = Vocabulary([{"size": 8192, "offset": 0}], special=special, pad="pad")
    template = Template("{bov}{frames:{frame}{eof}}{eov}", vocabulary, finds_shape=False)
    stream = clips().stream
    length = len(template.compose(next(iter(stream))["codes"]).tokens)
    stream.set_epoch(0)
    settings = {"template": template, "cut": "never", "num_sequences": {num_sequences}}
    return ClipDataset(TokenSequences(stream, length, **settings))
"""
)
"""A document in each sequence, so that they can be counted as clips are."""


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "library", "num_workers"),
    [
        ("ddp.py", "torch", 2),
        pytest.param("lit.py", "lightning", 1, marks=pytest.mark.slow),
        pytest.param("with_accelerate.py", "accelerate", 1, marks=pytest.mark.slow),
        pytest.param("hf.py", "accelerate", 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "data", [MIX, pytest.param(SEQUENCES, marks=pytest.mark.slow)], ids=["mix", "sequences"]
)
def test_a_mix_of_three_outputs_of_a_store_trains_as_well(
    name: str, library: str, num_workers: int, data: str, tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    pytest.importorskip(library)
    write_programs(tmp_path, kill_at=11)
    if data == SEQUENCES:
        for file in (name, "my_model.py"):
            code = (tmp_path / file).read_text().replace("8192", "9000")
            (tmp_path / file).write_text(code.replace('sample["codes"]', 'sample["tokens"]'))
        data = data.replace("{num_sequences}", str(NUM_CLIPS // 2 // num_workers))
    for number, output in enumerate("abc"):
        store = Store(f"{s3_bucket.uri}/{output}", StoreOptions())
        write_clips(store, (5, 4), first_row=100 * number)
    (tmp_path / "my_data.py").write_text(data.replace("{uri}", s3_bucket.uri))
    run(tmp_path, name, is_killed=True)
    run(tmp_path, name)
    check_steps(tmp_path, 2, num_workers)


def test_lightning_starts_its_ranks_itself(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    write_programs(tmp_path)
    run(tmp_path, "lit.py", num_ranks=None)
    check_steps(tmp_path)


@pytest.mark.ray
def test_ray_train_starts_the_ranks_and_restarts_them(
    tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_programs(tmp_path, kill_at=11)
    data = PROGRAMS["my_data.py"].replace('"out/', f'"{tmp_path}/out/')
    (tmp_path / "my_data.py").write_text(data)
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    run(tmp_path, "with_ray.py", num_ranks=None)
    check_steps(tmp_path)


@pytest.mark.parametrize("dispatch", [True, False])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_that_accelerate_shares_out_again_is_rejected(
    dispatch: bool, num_workers: int, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    write_programs(tmp_path)
    code = PROGRAMS["with_accelerate.py"].replace(
        "Accelerator(cpu=True)",
        "Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration("
        f"dispatch_batches={dispatch}))",
    )
    code = code.replace("import Accelerator", "import Accelerator, DataLoaderConfiguration")
    code = code.replace("num_workers=1", f"num_workers={num_workers}")
    code = code.replace("while epoch", "loader = accelerator.prepare(loader)\nwhile epoch")
    code = code.replace("    for tokens", "    loader.set_epoch(epoch)\n    for tokens")
    (tmp_path / "again.py").write_text(code)
    with pytest.raises(AssertionError, match=r"accelerate's .* shares out samples among ranks"):
        run(tmp_path, "again.py")
    alone = PROGRAMS["my_data.py"].replace('even="drop"', "rank=0, world_size=1")
    (tmp_path / "my_data.py").write_text(alone)
    for old in tmp_path.glob("steps-*"):
        old.unlink()
    run(tmp_path, "again.py")
    seen = [
        clip
        for path in tmp_path.glob("steps-*")
        for line in path.read_text().splitlines()
        for clip in json.loads(line)
    ]
    assert set(Counter(seen).values()) <= {NUM_EPOCHS, NUM_EPOCHS + 1, NUM_EPOCHS + 2}
    assert len(set(seen)) == NUM_CLIPS
