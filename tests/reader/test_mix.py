"""Mixes read outputs in proportion to their weights, pass after pass."""

from pathlib import Path

import numpy as np
import pytest

from tests.reader.conftest import FIRST_SMALL, LARGE, SMALL
from tests.reader.reader_helpers import ids, store_with
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache, Output


def is_small(clip_id: str) -> bool:
    return int(clip_id[:30], 16) >= FIRST_SMALL


def epochs_of(mix: ClipMix, number: int) -> list[list[str]]:
    found = []
    for epoch in range(number):
        mix.set_epoch(epoch)
        found.append(ids(mix))
    return found


@pytest.mark.parametrize(
    ("weights", "epoch_clips", "per_epoch"),
    [([5, 1], None, [30, 6]), ([1, 3], 17, [4, 13]), ([0.9, 0.1], 100, [90, 10])],
)
def test_passes_continue_from_epoch_to_epoch(
    weights: list[float], epoch_clips: int | None, per_epoch: list[int], caches: list[CodeCache]
) -> None:
    mix = ClipMix(caches, weights, epoch_clips=epoch_clips, seed=3)
    assert mix.clips_per_epoch == per_epoch
    assert len(mix) == sum(per_epoch)
    epochs = epochs_of(mix, 7)
    for size, small in ((sum(LARGE), False), (sum(SMALL), True)):
        of_output = [one for epoch in epochs for one in epoch if is_small(one) == small]
        assert len(of_output) == 7 * per_epoch[small]
        passes = [of_output[at : at + size] for at in range(0, len(of_output), size)]
        for one in passes:
            assert len(set(one)) == len(one), "no clip repeats before all others were read"
        assert len(passes[0]) < size or passes[0] != passes[1], "each pass has its own order"
    assert epochs_of(ClipMix(caches, weights, epoch_clips=epoch_clips, seed=3), 2) == epochs[:2]
    assert epochs_of(ClipMix(caches, weights, epoch_clips=epoch_clips, seed=4), 1) != epochs[:1]


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_rank_is_in_proportion_at_any_moment(world: int, caches: list[CodeCache]) -> None:
    for rank in range(world):
        mix = ClipMix(caches, [0.7, 0.3], epoch_clips=1000, rank=rank, world_size=world)
        small = np.cumsum([is_small(one) for one in ids(mix)])
        assert np.abs(small - 0.3 * np.arange(1, len(small) + 1)).max() < 2.5


def test_weights_per_code_allow_for_longer_clips(caches: list[CodeCache]) -> None:
    weights = [cache.output.num_clips / cache.output.num_codes for cache in caches]
    mix = ClipMix(caches, weights, epoch_clips=400)
    assert mix.clips_per_epoch == [300, 100]
    codes = [0, 0]
    for sample in mix:
        codes[is_small(sample["clip_id"])] += sample["codes"].size
    assert codes[0] == codes[1]


def test_a_mix_of_one_output_is_a_stream(caches: list[CodeCache]) -> None:
    for shuffle in (True, False):
        mix = ClipMix(caches[:1], [0.2], seed=6, shuffle=shuffle)
        assert epochs_of(mix, 3) == epochs_of(ClipStream(caches[0], seed=6, shuffle=shuffle), 3)


def test_empty_outputs_and_different_tokenizers_are_rejected(
    caches: list[CodeCache], tmp_path: Path
) -> None:
    empty = CodeCache(Output(store_with()), tmp_path)
    with pytest.raises(ConfigError, match="mem://out has no clips"):
        ClipMix([caches[0], empty], [1, 1])
    other = CodeCache(Output(store_with(codebook_size=262_144)), tmp_path)
    problem = (
        r"large and mem://out come from different tokenizers \(code_dtype: 'uint16' and 'uint32'; "
        r"codebook_size: 8192 and 262144\)"
    )
    with pytest.raises(ConfigError, match=problem):
        ClipMix([caches[0], other], [1, 1])


@pytest.mark.parametrize(
    ("weights", "epoch_clips", "problem"),
    [
        ([1], None, "1 weights for 2 outputs"),
        ([1, 0], None, r"weights=\[1, 0\]: each must be finite and above 0"),
        ([1, 1e-9], None, "so little weight that an epoch of 36 clips would have none"),
        ([1, 1], 0, "an epoch of 0 clips would have none"),
    ],
)
def test_impossible_mixes_are_rejected(
    weights: list[float], epoch_clips: int | None, problem: str, caches: list[CodeCache]
) -> None:
    with pytest.raises(ConfigError, match=problem):
        ClipMix(caches, weights, epoch_clips=epoch_clips)


def test_states_of_another_mix_are_rejected(caches: list[CodeCache]) -> None:
    state = iter(ClipMix(caches, [1, 1])).state_dict()
    with pytest.raises(ConfigError, match=r"state has clips_per_epoch=\[18, 18\], but this"):
        ClipMix(caches, [2, 1]).resume([state])
    with pytest.raises(ConfigError, match=r"stream has num_clips=\[6, 30\]"):
        ClipMix(caches[::-1], [1, 1]).resume([state])
    with pytest.raises(ConfigError, match="no state of a clip stream"):
        ClipStream(caches[0]).resume([state])
