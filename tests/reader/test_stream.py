"""Streams and mixes yield every clip of an epoch once, whatever readers there are."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests.reader.reader_helpers import ids
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache
from tokpipe.reader.dataset import ClipDataset

OpenStream = Callable[..., ClipMix]

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on few cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # by torchdata
]


def saved(state: Any) -> Any:
    return json.loads(json.dumps(state))


def test_samples_have_the_codes_of_their_clips(open_stream: OpenStream) -> None:
    stream = open_stream()
    wanted = {clip.clip_id: clip.codes for cache in stream.caches for clip in cache.output.clips()}
    for sample in stream:
        assert sample["codes"].dtype == np.int64
        np.testing.assert_array_equal(sample["codes"], wanted[sample["clip_id"]])


def test_the_order_depends_on_seed_and_epoch(cache: CodeCache) -> None:
    stream = ClipStream(cache, seed=3)
    first, second = ids(stream), ids(stream)
    for epoch, wanted in ((0, first), (1, second)):
        stream.set_epoch(epoch)
        assert ids(stream) == wanted
    assert ids(ClipStream(cache, seed=3)) == first
    plain = [clip.clip_id for clip in cache.output.clips()]
    assert sorted(first) == sorted(second) == sorted(plain)
    assert first != second != ids(ClipStream(cache, seed=4))
    assert ids(ClipStream(cache, shuffle=False)) == plain


@settings(max_examples=50)
@given(data=st.data())
def test_resuming_with_any_number_of_readers_loses_and_repeats_nothing(
    open_stream: OpenStream, data: st.DataObject
) -> None:
    whole = open_stream()
    whole.set_epoch(3)
    wanted, seen = Counter(ids(whole)), Counter[str]()
    states: list[Any] = []
    for _ in range(data.draw(st.integers(1, 4))):
        world = data.draw(st.integers(1, 5))
        streams = [open_stream(rank=rank, world_size=world) for rank in range(world)]
        for stream in streams:
            if states:
                stream.resume(states)
            else:
                stream.set_epoch(3)
        readers = [iter(stream) for stream in streams]
        for reader in readers:
            seen.update(ids(islice(reader, data.draw(st.integers(0, 8)))))
        states = saved([reader.state_dict() for reader in readers])
        if seen == wanted:
            break
    last = open_stream()
    last.resume(states)
    assert last.epoch == (4 if seen == wanted else 3)
    if last.epoch == 3:
        assert len(last) == wanted.total() - seen.total()
        seen.update(ids(last))
    assert seen == wanted


def test_the_same_reader_resumes_exactly(open_stream: OpenStream) -> None:
    first = open_stream(rank=1, world_size=2)
    first.set_epoch(5)
    whole = ids(first)
    for stop in range(len(whole) + 1):
        first.set_epoch(5)
        reader = iter(first)
        assert ids(islice(reader, stop)) == whole[:stop]
        again = iter(open_stream(rank=1, world_size=2))
        again.load_state_dict(saved(reader.state_dict()))
        assert ids(again) == whole[stop:]


def loader_of(stream: ClipMix, num_workers: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    settings = {"batch_size": 3, "num_workers": num_workers, "collate_fn": ids}
    return StatefulDataLoader(ClipDataset(stream), **settings)


def test_two_ranks_of_two_workers_resume_as_one_of_three(open_stream: OpenStream) -> None:
    wanted, seen = Counter(ids(open_stream())), Counter[str]()
    states = []
    for rank in range(2):
        loader = loader_of(open_stream(rank=rank, world_size=2), 2)
        for batch in islice(loader, 2 + rank):
            seen.update(batch)
        states.append(loader.state_dict())
    assert 0 < seen.total() < wanted.total()
    stream = open_stream()
    stream.resume(states)
    for batch in loader_of(stream, 3):
        seen.update(batch)
    assert seen == wanted


def test_a_stateful_loader_resumes_with_the_next_batch(cache: CodeCache) -> None:
    whole = list(loader_of(ClipStream(cache), 2))
    loader, again = (loader_of(ClipStream(cache), 2) for _ in range(2))
    assert list(islice(loader, 3)) == whole[:3]
    again.load_state_dict(loader.state_dict())
    assert list(again) == whole[3:]


def test_the_workers_of_a_plain_loader_share_the_clips(cache: CodeCache) -> None:
    loader: Any = DataLoader(ClipDataset(ClipStream(cache)), batch_size=None, num_workers=2)
    samples = list(loader)
    assert sorted(ids(samples)) == sorted(ids(ClipStream(cache)))
    assert all(isinstance(sample["codes"], torch.Tensor) for sample in samples)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 7}, "the state has seed=7, but this stream has seed=0"),
        ({"num_clips": [99]}, r"the state has num_clips=\[99\]"),
        ({"num_readers": 3}, "one state has num_readers=3, another num_readers=2"),
        ({"epoch": 2}, "one state has epoch=2, another epoch=0"),
        ({"reader": 1}, "got the states of 1 of 2 readers"),
    ],
)
def test_states_that_do_not_belong_together_are_rejected(
    change: dict[str, Any], problem: str, cache: CodeCache
) -> None:
    states = [iter(ClipStream(cache, rank=rank, world_size=2)).state_dict() for rank in range(2)]
    states[0] |= change
    with pytest.raises(ConfigError, match=problem):
        ClipStream(cache).resume(states)


def test_states_and_ranks_that_do_not_fit_the_stream_are_rejected(cache: CodeCache) -> None:
    state = iter(ClipStream(cache, rank=1, world_size=2)).state_dict()
    with pytest.raises(ConfigError, match="contains no state of a clip stream"):
        ClipStream(cache).resume([{"other": 1}])
    with pytest.raises(ConfigError, match="rank=2: must be from 0 to 1"):
        ClipStream(cache, rank=2, world_size=2)
    with pytest.raises(ConfigError, match=r"reader 0 of 1, but the state is of reader 1 of 2"):
        iter(ClipStream(cache)).load_state_dict(state)
