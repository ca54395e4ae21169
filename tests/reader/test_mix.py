"""Clips of several outputs: in proportion, by turns of passes, through stops and other worlds."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import begin, commit, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache, TokenSequences
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reader.output import Output
from tokpipe.storage import open_store

LARGE, SMALL = (9, 4, 10, 7), (3, 3)
NUM_LARGE, NUM_SMALL = sum(LARGE), sum(SMALL)
FIRST_SMALL = 500
OF_LOADERS = (
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on few cores
)


def write(store: Any, shards: Sequence[int], first_row: int, chunks: int = 1) -> None:
    begin(store)
    row, receipts = first_row, []
    for shard, number in enumerate(shards):
        clips = [encoded_clip(row + i, [5] * chunks) for i in range(number)]
        receipts.append(put_shard(store, f"s{first_row}-{shard}", clips))
        row += number
    if receipts:
        commit(store, 0, *receipts)


def cache_of(folder: Path, shards: Sequence[int], first_row: int, chunks: int = 1) -> CodeCache:
    store = DictStore()
    write(store, shards, first_row, chunks)
    return CodeCache(Output(store), folder)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[CodeCache]:
    """Of 30 clips, and of 6 that are three times as long."""
    folder = tmp_path_factory.mktemp("caches")
    return [cache_of(folder, LARGE, 0), cache_of(folder, SMALL, FIRST_SMALL, chunks=3)]


def ids(samples: Iterator[Any]) -> list[str]:
    return [sample["clip_id"] for sample in samples]


def is_small(clip_id: str) -> bool:
    return int(clip_id[:30], 16) >= FIRST_SMALL


def epochs_of(mix: ClipMix, number: int) -> list[list[str]]:
    found = []
    for epoch in range(number):
        mix.set_epoch(epoch)
        found.append(ids(iter(mix)))
    return found


def test_clips_are_those_of_their_outputs(caches: list[CodeCache]) -> None:
    wanted = {clip.clip_id: clip.codes for cache in caches for clip in cache.output.clips()}
    for sample in ClipMix(caches, [1, 1]):
        np.testing.assert_array_equal(sample["codes"], wanted[sample["clip_id"]])


@pytest.mark.parametrize(
    ("weights", "epoch_clips", "per_epoch"),
    [
        ([5, 1], None, [30, 6]),
        ([0.5, 0.5], None, [18, 18]),
        ([1, 3], 17, [4, 13]),
        ([0.9, 0.1], 100, [90, 10]),
    ],
)
def test_passes_follow_each_other_from_epoch_to_epoch(
    weights: list[float], epoch_clips: int | None, per_epoch: list[int], caches: list[CodeCache]
) -> None:
    mix = ClipMix(caches, weights, epoch_clips=epoch_clips, seed=3)
    assert mix.clips_per_epoch == per_epoch
    assert len(mix) == sum(per_epoch)
    epochs = epochs_of(mix, 7)
    for size, small in ((NUM_LARGE, False), (NUM_SMALL, True)):
        of_output = [one for epoch in epochs for one in epoch if is_small(one) == small]
        assert len(of_output) == 7 * per_epoch[small]
        passes = [of_output[at : at + size] for at in range(0, len(of_output), size)]
        for one in passes:
            assert len(set(one)) == len(one), "nothing twice before everything once"
        assert len(passes[0]) < size or passes[0] != passes[1], "each pass has its own order"
    assert epochs_of(ClipMix(caches, weights, epoch_clips=epoch_clips, seed=3), 2) == epochs[:2]
    assert epochs_of(ClipMix(caches, weights, epoch_clips=epoch_clips, seed=4), 1) != epochs[:1]


def test_what_an_epoch_has_is_the_same_for_any_number_of_readers(caches: list[CodeCache]) -> None:
    def clips(world: int) -> Counter[str]:
        seen: Counter[str] = Counter()
        for rank in range(world):
            mix = ClipMix(caches, [0.6, 0.4], rank=rank, world_size=world)
            mix.set_epoch(2)
            seen.update(ids(iter(mix)))
        return seen

    assert clips(1) == clips(2) == clips(7)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_rank_is_in_proportion_at_every_moment(world: int, caches: list[CodeCache]) -> None:
    for rank in range(world):
        mix = ClipMix(caches, [0.7, 0.3], epoch_clips=1000, rank=rank, world_size=world)
        small = np.cumsum([is_small(one) for one in ids(iter(mix))])
        assert np.abs(small - 0.3 * np.arange(1, len(small) + 1)).max() < 2.5


def test_weights_of_codes_allow_for_longer_clips(caches: list[CodeCache]) -> None:
    mix = ClipMix(caches, [1, 1], by="codes", epoch_clips=400)
    assert mix.clips_per_epoch == [300, 100]
    codes = [0, 0]
    for sample in mix:
        codes[is_small(sample["clip_id"])] += sample["codes"].size
    assert codes[0] == codes[1]


def test_one_output_is_a_stream(caches: list[CodeCache]) -> None:
    mix = ClipMix(caches[:1], [0.2], seed=6)
    assert epochs_of(mix, 3) == epochs_of(ClipStream(caches[0], seed=6), 3)


def test_without_shuffling_outputs_come_as_they_stand(caches: list[CodeCache]) -> None:
    found = ids(iter(ClipMix(caches, [5, 1], shuffle=False)))
    for cache, small in zip(caches, (False, True), strict=True):
        plain = [clip.clip_id for clip in cache.output.clips()]
        assert [one for one in found if is_small(one) == small] == plain


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_stops_and_other_worlds_lose_and_double_nothing(
    caches: list[CodeCache], data: st.DataObject
) -> None:
    weights = data.draw(st.sampled_from([[1.0, 1.0], [0.9, 0.1], [0.25, 0.75]]))

    def mix_of(rank: int = 0, world: int = 1) -> ClipMix:
        mix = ClipMix(caches, weights, epoch_clips=50, seed=1, rank=rank, world_size=world)
        mix.set_epoch(3)
        return mix

    wanted, seen = Counter(ids(iter(mix_of()))), Counter[str]()
    states: list[Any] = []
    for _ in range(data.draw(st.integers(1, 4))):
        world = data.draw(st.integers(1, 5))
        readers = []
        for rank in range(world):
            mix = mix_of(rank, world)
            if states:
                mix.resume(states)
            readers.append(iter(mix))
        for reader in readers:
            for _ in range(data.draw(st.integers(0, 8))):
                if (sample := next(reader, None)) is not None:
                    seen[sample["clip_id"]] += 1
        states = json.loads(json.dumps([reader.state_dict() for reader in readers]))
    last = ClipMix(caches, weights, epoch_clips=50, seed=1)
    last.resume(states)
    assert last.epoch == 3
    assert len(last) == 50 - seen.total()
    seen.update(ids(iter(last)))
    assert seen == wanted


def test_the_same_reader_goes_on_exactly(caches: list[CodeCache]) -> None:
    def mix() -> ClipMix:
        return ClipMix(caches, [0.4, 0.6], seed=2, rank=1, world_size=2)

    first = mix()
    first.set_epoch(5)
    whole = [sample["codes"].tolist() for sample in first]
    for stop in range(len(whole) + 1):
        reader = iter(first)
        for _ in range(stop):
            next(reader)
        state = json.loads(json.dumps(copy.deepcopy(reader.state_dict())))
        again = iter(mix())
        again.load_state_dict(state)
        assert [sample["codes"].tolist() for sample in again] == whole[stop:]


def test_sequences_of_a_mix_go_on_exactly(caches: list[CodeCache]) -> None:
    def sequences() -> TokenSequences:
        return TokenSequences(ClipMix(caches, [0.5, 0.5], by="codes", seed=2), 20)

    whole = [item["tokens"].tolist() for item in sequences()]
    for stop in range(0, len(whole) + 1, 3):
        reader = iter(sequences())
        for _ in range(stop):
            next(reader)
        again = iter(sequences())
        again.load_state_dict(json.loads(json.dumps(reader.state_dict())))
        assert [item["tokens"].tolist() for item in again] == whole[stop:]


@OF_LOADERS[0]
@OF_LOADERS[1]
def test_two_ranks_of_two_workers_then_one_of_three(tmp_path: Path) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    for name, shards, first_row in (("large", LARGE, 0), ("small", SMALL, FIRST_SMALL)):
        write(open_store(str(tmp_path / name), StoreOptions()), shards, first_row)

    def mix(rank: int, world: int) -> ClipMix:
        outputs = [
            Output(open_store(str(tmp_path / name), StoreOptions())) for name in ("large", "small")
        ]
        caches = [CodeCache(output, tmp_path / "cache") for output in outputs]
        return ClipMix(caches, [0.5, 0.5], seed=9, rank=rank, world_size=world)

    def loader(rank: int, world: int, workers: int, states: Any = None) -> Any:
        one = mix(rank, world)
        if states is not None:
            one.resume(states)
        return StatefulDataLoader(
            ClipDataset(one), batch_size=2, num_workers=workers, collate_fn=ids
        )

    wanted, seen = Counter(ids(iter(mix(0, 1)))), Counter[str]()
    states = []
    for rank, num_batches in enumerate((4, 3)):
        one = loader(rank, 2, 2)
        for _, batch in zip(range(num_batches), one, strict=False):
            seen.update(batch)
        states.append(one.state_dict())
    assert seen.total() == 14
    for batch in loader(0, 1, 3, states):
        seen.update(batch)
    assert seen == wanted


def test_codes_of_other_tokenizers_are_not_mixed(caches: list[CodeCache], tmp_path: Path) -> None:
    store = DictStore()
    begin(store, codebook_size=262_144)
    other = CodeCache(Output(store), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"mem://out and mem://out come from different tokenizers \(code_dtype: 'uint16' and "
        r"'uint32'; codebook_size: 8192 and 262144\)",
    ):
        ClipMix([caches[0], other], [1, 1])


@pytest.mark.parametrize(
    ("weights", "epoch_clips", "problem"),
    [
        ([1], None, "1 weights for 2 outputs"),
        ([1, 0], None, r"weights=\[1, 0\]: each must be finite and above 0"),
        ([1, 1e-9], None, "so little weight that none of the 36 clips"),
        ([1, 1], 0, "none of the 0 clips"),
    ],
)
def test_mixes_that_cannot_be_are_refused(
    weights: list[float], epoch_clips: int | None, problem: str, caches: list[CodeCache]
) -> None:
    with pytest.raises(ConfigError, match=problem):
        ClipMix(caches, weights, epoch_clips=epoch_clips)


def test_outputs_without_clips_are_refused(caches: list[CodeCache], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mem://out has no clips"):
        ClipMix([caches[0], cache_of(tmp_path, [], 0)], [1, 1])


def test_states_of_another_mix_are_refused(caches: list[CodeCache]) -> None:
    state = iter(ClipMix(caches, [1, 1])).state_dict()
    with pytest.raises(
        ConfigError, match=r"clips_per_epoch=\[18, 18\], and this stream \[24, 12\]"
    ):
        ClipMix(caches, [2, 1]).resume([state])
    with pytest.raises(ConfigError, match=r"num_clips=\[30, 6\], and this stream \[6, 30\]"):
        ClipMix(caches[::-1], [1, 1]).resume([state])
    with pytest.raises(ConfigError, match="no state of a clip stream"):
        ClipStream(caches[0]).resume([state])
