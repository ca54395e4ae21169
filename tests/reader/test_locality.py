"""With locality="node", each node reads its own part of the shards, and no clip twice."""

from collections import Counter
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reader.reader_helpers import ids, write_clips
from tests.reader.test_stream import saved
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache, open_output
from tokpipe.reader.order import EpochOrder
from tokpipe.storage import Store

OpenStream = Callable[..., ClipMix]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(1, 4),
    st.booleans(),
)
def test_parts_of_an_order_are_equal_and_of_few_shards(
    sizes: list[int], num_parts: int, window_shards: int, shuffle: bool
) -> None:
    settings: dict[str, Any] = {"shuffle": shuffle, "window_shards": window_shards}
    order = EpochOrder(np.array(sizes), num_parts=num_parts, **settings)
    items = [order[position] for position in range(len(order))]
    assert sorted(items) == [(s, k) for s, size in enumerate(sizes) for k in range(size)]
    starts = [part * len(order) // num_parts for part in range(num_parts + 1)]
    owners = Counter[int]()
    for first, last in pairwise(starts):
        shards = [shard for shard, _ in items[first:last]]
        owners.update(set(shards))
        for position in range(first, last):
            wanted = order.shards_of(order.window_of(position), last)
            assert {shards[position - first]} <= set(wanted) <= set(shards)
    assert sum(count - 1 for count in owners.values()) < num_parts
    if num_parts == 1:
        assert items == [EpochOrder(np.array(sizes), **settings)[k] for k in range(len(order))]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_clip_is_read_once_over_nodes_and_resumes(
    open_stream: OpenStream, data: st.DataObject
) -> None:
    num_nodes, epoch = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.integers(0, 4))
    whole = open_stream()
    whole.set_epoch(epoch)
    wanted, seen, states = Counter(ids(whole)), Counter[str](), list[Any]()
    for last in (False,) * data.draw(st.integers(0, 3)) + (True,):
        world = num_nodes * data.draw(st.integers(1, 3))
        streams = [
            open_stream(rank=rank, world_size=world, locality="node", num_nodes=num_nodes)
            for rank in range(world)
        ]
        for stream in streams:
            if states:
                stream.resume(states)
            else:
                stream.set_epoch(epoch)
        if {stream.epoch for stream in streams} != {epoch}:
            break  # everything was read, so the next iteration would be the next epoch
        readers = [iter(stream) for stream in streams]
        for reader in readers:
            seen.update(ids(reader if last else islice(reader, data.draw(st.integers(0, 6)))))
        states = saved([reader.state_dict() for reader in readers])
    assert seen.total() == wanted.total()
    if whole.clips_per_epoch == whole._num_clips:
        assert seen == wanted


def test_passes_of_a_mix_have_every_clip_once_over_nodes(caches: list[CodeCache]) -> None:
    seen, number = Counter[str](), 5  # of nodes
    settings: dict[str, Any] = {"world_size": number, "locality": "node", "num_nodes": number}
    mixes = [ClipMix(caches, [1, 1], epoch_clips=20, rank=k, **settings) for k in range(number)]
    for epoch in range(3):  # 10 clips of each output per epoch: one pass, and five
        for mix in mixes:
            mix.set_epoch(epoch)
            seen.update(ids(mix))
    large = {clip.clip_id for clip in caches[0].output.clips()}
    assert sorted(seen.values()) == [1] * 30 + [5] * 6
    assert {clip_id for clip_id, count in seen.items() if count == 1} == large


@pytest.mark.parametrize("num_nodes", [1, 2, 8])
def test_a_node_fetches_its_part_only(num_nodes: int, tmp_path: Path) -> None:
    write_clips(Store(str(tmp_path / "out"), StoreOptions()), (3, 9, 5) * 8)
    output = open_output(str(tmp_path / "out"))
    parts = []
    for node in range(num_nodes):
        cache = CodeCache(output, tmp_path / f"cache-{node}")
        settings = {"rank": node, "world_size": num_nodes, "num_nodes": num_nodes}
        stream = ClipStream(cache, locality="node", **settings)
        first = ids(stream)
        made = len([*(tmp_path / f"cache-{node}").glob("*.arrow")])
        assert made <= len(output.shards) / num_nodes + 3 + 2
        stream.set_epoch(1)
        assert num_nodes == 1 or set(first) != set(ids(stream)), "parts are dealt again"
        parts.append(len(first))
    assert sum(parts) == output.num_clips
    assert max(parts) - min(parts) <= 1


def test_nodes_come_from_torchrun(cache: CodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    stream = ClipStream(cache, rank=5, world_size=6, locality="node")
    assert stream.num_nodes == 3
    assert iter(stream).state_dict()["start"] == [2 * cache.output.num_clips // 3]


def test_other_numbers_of_nodes_are_rejected(cache: CodeCache) -> None:
    settings: dict[str, Any] = {"world_size": 4, "locality": "node", "num_nodes": 2}
    states = [iter(ClipStream(cache, rank=rank, **settings)).state_dict() for rank in range(4)]
    with pytest.raises(ConfigError, match="the state has num_nodes=2, but this stream has num_n"):
        ClipStream(cache).resume(states)
    with pytest.raises(ConfigError, match="got the states of 2 of 4 readers"):
        ClipStream(cache, rank=0, **settings).resume(states[:2])
    with pytest.raises(ConfigError, match="reader 2 of 4, but the state is of reader 0"):
        iter(ClipStream(cache, rank=2, **settings)).load_state_dict(states[0])
    with pytest.raises(ConfigError, match="3 nodes cannot have the same number of the 4 ranks"):
        iter(ClipStream(cache, rank=0, world_size=4, locality="node", num_nodes=3)).state_dict()
