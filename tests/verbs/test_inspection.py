"""``tokpipe inspect`` against counts made by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import store_with
from tokpipe.errors import CorruptOutput
from tokpipe.reader.output import Output
from tokpipe.telemetry.human import json_line
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.types import EncodedClip
from tokpipe.verbs.inspect import Inspection

NUM_SHARDS = 5


@pytest.fixture
def clips() -> list[list[EncodedClip]]:
    """The clips of each shard."""
    return [[encoded_clip(10 * shard + row, [5, 9]) for row in range(3)] for shard in range(5)]


@pytest.fixture
def output(clips: list[list[EncodedClip]]) -> Output:
    return Output(store_with(*clips))


def codes_of(clips: list[EncodedClip]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.concatenate([block.ravel() for clip in clips for block in clip.codes]).astype(int)


def test_codes_of_all_shards_are_counted(output: Output, clips: list[list[EncodedClip]]) -> None:
    found = Inspection(output, num_shards=0, num_clips=2)
    wanted, counts = np.unique(codes_of([c for s in clips for c in s]), return_counts=True)
    np.testing.assert_array_equal(found.usage.codes, wanted)
    np.testing.assert_array_equal(found.usage.counts, counts)
    assert found.num_shards == NUM_SHARDS
    assert len(found.clips) == 2
    text = "\n".join(found.lines())
    assert f"{counts.sum():,} codes of all shards:" in text
    assert f"{len(wanted):,} of 8,192 occur" in text
    assert "codes              list of uint16" in text
    assert "caption=caption 0" in text
    shown = json.loads(json_line(found.to_dict()))
    assert sum(shown["counted"]["histogram"]) == counts.sum() == shown["num_codes"]
    assert shown["schema"]["clip_id"] == "string"


def test_sampled_shards_are_evenly_spread(output: Output, clips: list[list[EncodedClip]]) -> None:
    found = Inspection(output, num_shards=2, num_clips=0)
    wanted = np.unique(codes_of(clips[0] + clips[2]))
    np.testing.assert_array_equal(found.usage.codes, wanted)
    assert "codes of 2 shards:" in "\n".join(found.lines())
    assert found.clips == []


def test_a_damaged_shard_ends_the_inspection(clips: list[list[EncodedClip]]) -> None:
    store = store_with(*clips)
    key = sorted(key for key in store.objects if key.startswith("shards/"))[-1]
    store.objects[key] = store.objects[key][:-1] + b"!"
    with pytest.raises(CorruptOutput, match=key):
        Inspection(Output(store), num_shards=0)


def test_an_output_without_codes_says_so() -> None:
    found = Inspection(Output(store_with()))
    assert "no codes yet" in "\n".join(found.lines())
    assert json.loads(json_line(found.to_dict()))["counted"]["num_codes"] == 0


@given(st.dictionaries(st.integers(0, 8191), st.integers(1, 1000), min_size=1, max_size=50))
def test_usage_follows_from_the_counts(counts: dict[int, int]) -> None:
    codes = np.array(sorted(counts))
    usage = CodeUsage(8192)
    usage.update(np.repeat(codes, [counts[code] for code in codes]))
    total = sum(counts.values())
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
    assert usage.entropy_bits == pytest.approx(entropy, abs=1e-9)
    assert usage.perplexity == pytest.approx(2**entropy)
    assert usage.histogram(7).sum() == total
    assert usage.histogram(8192)[codes].tolist() == usage.counts.tolist()
    assert usage.most_frequent(1)[0][1] == pytest.approx(max(counts.values()) / total)
