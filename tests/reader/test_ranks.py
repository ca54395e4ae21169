"""Ranks come from one place, and nothing shares out samples twice."""

import multiprocessing
import pickle
from typing import Any

import pytest

from tests.reader.reader_helpers import ids
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipStream, CodeCache
from tokpipe.reader.ranks import Ranks


def test_ranks_come_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks().rank() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Ranks().rank() == (2, 3)
    assert Ranks(0, 1).rank() == (0, 1)
    with pytest.raises(ConfigError, match="pass both, or neither"):
        Ranks(rank=1)


def _of_rank(rank: int, world_size: int, address: str, stream: ClipStream, results: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    results.put((rank, [ids(stream) for _ in range(3)]))
    dist.barrier()
    dist.destroy_process_group()


def test_spawned_ranks_find_themselves_and_count_their_own_epochs(
    cache: CodeCache, tmp_path: Any
) -> None:
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    stream = ClipStream(cache, seed=3, even="drop")
    address = f"file://{tmp_path / 'rendezvous'}"
    ranks = [
        spawn.Process(target=_of_rank, args=(rank, 2, address, stream, results))
        for rank in range(2)
    ]
    for one in ranks:
        one.start()
    found = dict(results.get(timeout=120) for _ in ranks)
    for one in ranks:
        one.join()
    for epoch in range(3):
        clips = [clip for rank in range(2) for clip in found[rank][epoch]]
        assert len(found[0][epoch]) == len(found[1][epoch]) == 11
        assert len(set(clips)) == len(clips)
    assert found[0][0] != found[0][1] != found[0][2]


def test_a_pickled_stream_goes_on_by_itself(cache: CodeCache) -> None:
    stream = ClipStream(cache, seed=3)
    first = ids(stream)
    copy = pickle.loads(pickle.dumps(stream))
    assert ids(copy) == ids(stream) != first
    assert copy.epoch == stream.epoch == 2
