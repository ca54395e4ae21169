"""Every clip once an epoch: over ranks and workers, through stops and other numbers of them."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.reader.conftest import NUM_CLIPS
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipStream, CodeCache
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reader.output import Output
from tokpipe.storage import open_store

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on few cores
OF_TORCHDATA = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def ids(samples: Iterator[Any]) -> list[str]:
    return [sample["clip_id"] for sample in samples]


def test_clips_are_those_of_the_output(cache: CodeCache) -> None:
    wanted = {clip.clip_id: clip.codes for clip in cache._output.clips()}
    for sample in ClipStream(cache):
        codes = wanted.pop(sample["clip_id"])
        assert sample["codes"].dtype == np.int64
        np.testing.assert_array_equal(sample["codes"], codes)
    assert not wanted


def test_order_is_that_of_seed_and_epoch(cache: CodeCache) -> None:
    stream = ClipStream(cache, seed=3)
    first = ids(iter(stream))
    assert ids(iter(stream)) == first == ids(iter(ClipStream(cache, seed=3)))
    stream.set_epoch(1)
    second = ids(iter(stream))
    assert sorted(first) == sorted(second)
    assert first != second != ids(iter(ClipStream(cache, seed=4)))
    plain = [clip.clip_id for clip in cache._output.clips()]
    assert ids(iter(ClipStream(cache, shuffle=False))) == plain


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_stops_and_other_worlds_lose_and_double_nothing(
    cache: CodeCache, data: st.DataObject
) -> None:
    seen: Counter[str] = Counter()
    states: list[Any] = []
    for _ in range(data.draw(st.integers(1, 4))):
        world = data.draw(st.integers(1, 5))
        readers = []
        for rank in range(world):
            stream = ClipStream(cache, seed=1, rank=rank, world_size=world)
            if states:
                stream.resume(states)
            readers.append(iter(stream))
        for reader in readers:
            for _ in range(data.draw(st.integers(0, 6))):
                if (sample := next(reader, None)) is not None:
                    seen[sample["clip_id"]] += 1
        states = json.loads(json.dumps([reader.state_dict() for reader in readers]))
    last = ClipStream(cache, seed=1)
    last.resume(states)
    assert len(last) == NUM_CLIPS - seen.total()
    seen.update(ids(iter(last)))
    assert len(seen) == seen.total() == NUM_CLIPS


def test_the_same_reader_goes_on_exactly(cache: CodeCache) -> None:
    stream = ClipStream(cache, seed=2, rank=1, world_size=2)
    stream.set_epoch(5)
    reader = iter(stream)
    for _ in range(4):
        next(reader)
    state, rest = copy.deepcopy(reader.state_dict()), ids(reader)
    again = iter(ClipStream(cache, seed=2, rank=1, world_size=2))
    again.load_state_dict(state)
    assert ids(again) == rest


@OF_TORCHDATA
def test_two_ranks_of_two_workers_then_one_of_three(folder: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader(rank: int, world: int, workers: int, states: Any = None) -> Any:
        output = Output(open_store(str(folder / "out"), StoreOptions()))
        stream = ClipStream(
            CodeCache(output, folder / "cache"), seed=9, rank=rank, world_size=world
        )
        if states is not None:
            stream.resume(states)
        return StatefulDataLoader(
            ClipDataset(stream), batch_size=2, num_workers=workers, collate_fn=ids
        )

    seen: Counter[str] = Counter()
    states = []
    for rank, num_batches in enumerate((3, 2)):
        one = loader(rank, 2, 2)
        for _, batch in zip(range(num_batches), one, strict=False):
            seen.update(batch)
        states.append(one.state_dict())
    assert 0 < seen.total() < NUM_CLIPS
    for batch in loader(0, 1, 3, states):
        seen.update(batch)
    assert len(seen) == seen.total() == NUM_CLIPS


@OF_TORCHDATA
def test_a_stateful_loader_of_the_same_world_goes_on(folder: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        output = Output(open_store(str(folder / "out"), StoreOptions()))
        stream = ClipStream(CodeCache(output, folder / "cache"), seed=4)
        return StatefulDataLoader(ClipDataset(stream), batch_size=3, num_workers=2, collate_fn=ids)

    whole = [list(batch) for batch in loader()]
    one = loader()
    for _, _ in zip(range(3), one, strict=False):
        pass
    again = loader()
    again.load_state_dict(one.state_dict())
    assert [list(batch) for batch in again] == whole[3:]


def test_plain_loaders_share_it_out_too(folder: Path) -> None:
    output = Output(open_store(str(folder / "out"), StoreOptions()))
    stream = ClipStream(CodeCache(output, folder / "cache"))
    loader: Any = DataLoader(ClipDataset(stream), batch_size=None, num_workers=2)
    samples = list(loader)
    assert len({sample["clip_id"] for sample in samples}) == len(samples) == NUM_CLIPS
    assert all(isinstance(sample["codes"], torch.Tensor) for sample in samples)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 7}, "the state has seed=7, and this stream 0"),
        ({"num_clips": [99]}, r"the state has num_clips=\[99\]"),
        ({"num_readers": 3}, "one has num_readers=3 and one 2"),
        ({"epoch": 2}, "one has epoch=2 and one 0"),
        ({"reader": 1}, "states of 1 readers were given, and there were 2"),
    ],
)
def test_states_that_do_not_belong_are_refused(
    change: dict[str, Any], problem: str, cache: CodeCache
) -> None:
    states = [iter(ClipStream(cache, rank=rank, world_size=2)).state_dict() for rank in range(2)]
    states[0] |= change
    with pytest.raises(ConfigError, match=problem):
        ClipStream(cache).resume(states)
    with pytest.raises(ConfigError, match="no state of a clip stream"):
        ClipStream(cache).resume([{"other": 1}])
    with pytest.raises(ConfigError, match=r"rank=2 is none of the 2 ranks"):
        ClipStream(cache, rank=2, world_size=2)
    with pytest.raises(ConfigError, match=r"reader 0 of 1, and the state is of reader 1 of 2"):
        iter(ClipStream(cache)).load_state_dict(states[1])
