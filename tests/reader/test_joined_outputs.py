"""Several outputs of one fingerprint, read as one."""

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.formats.formats_helpers import clip_ref, encoded_clip, record
from tests.reader.reader_helpers import commit, ids, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, CorruptOutput, IncompleteOutput, NotFound
from tokpipe.formats.job_record import write_once
from tokpipe.reader import ClipMix, ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader import values as reader_values
from tokpipe.storage import Store
from tokpipe.types import Rejected

SIZES = {"a": (3, 2), "b": (4,), "c": (1, 5, 2)}


def write(root: Path, name: str, sizes: Sequence[int], first_row: int = 0, **fields: Any) -> Store:
    """Write an output with an entry for each shard, of a plan with one row that is rejected."""
    store = Store(str(root / name), StoreOptions())
    fields = {"writer": name, "num_rows": 1000, **fields}
    write_once(store, record(**fields))
    for seq, size in enumerate(sizes):
        add(store, seq, size, first_row + sum(sizes[:seq]))
    return store


def add(store: Store, seq: int, size: int, first_row: int) -> None:
    clips = [encoded_clip(row, (5,)) for row in range(first_row, first_row + size)]
    commit(store, seq, put_shard(store, f"s{seq}", clips))


@pytest.fixture
def stores(tmp_path: Path) -> list[Store]:
    """Three outputs, whose clips are of the rows from 0, 100 and 200 on."""
    sizes = enumerate(SIZES.items())
    return [write(tmp_path, name, each, 100 * index) for index, (name, each) in sizes]


def joined(stores: Sequence[Store]) -> Output:
    return open_output([store.uri for store in stores])


def test_clips_shards_and_sums_are_those_of_all_in_order(stores: list[Store]) -> None:
    rejected = Rejected(clip_ref(900), "decode", "no_video", "message")
    commit(stores[1], 1, rejected=[rejected])
    each = [open_output(store.uri) for store in stores]
    output = pickle.loads(pickle.dumps(joined(stores)))
    clips = [clip for one in each for clip in one.clips()]
    assert [clip.clip_id for clip in output.clips()] == [clip.clip_id for clip in clips]
    assert [info.uri for info in output.shards] == [info.uri for one in each for info in one.shards]
    assert [info.output for info in output.shards] == [0, 0, 1, 2, 2, 2]
    for clip in clips:
        found = output.clip(clip.clip_id)
        assert (found.source_uri, found.metadata) == (clip.source_uri, clip.metadata)
        assert found.codes.tolist() == clip.codes.tolist()
    assert output.to_table().equals(pa.concat_tables([one.to_table() for one in each]))
    assert [table.num_rows for table in output.iter_side_tables()] == [3, 2, 4, 1, 5, 2]
    totals = output.totals
    assert (totals.num_clips, totals.num_shards, totals.num_rejected) == (17, 6, 1)
    assert totals.num_codes == output.num_codes == sum(one.num_codes for one in each)
    assert totals.encoders == sum((one.totals.encoders for one in each), Counter())
    assert [*output.rejected()] == [rejected]
    assert (output.num_rows, output.num_rows_left) == (3000, 3000 - 18)
    with pytest.raises(NotFound, match="no tokenized clip 'x'"):
        output.clip("x")


def test_one_uri_in_a_list_is_that_output(stores: list[Store]) -> None:
    assert joined(stores[:1]).uri == stores[0].uri


def test_a_cache_and_streams_are_of_all_clips(stores: list[Store], tmp_path: Path) -> None:
    output = joined(stores)
    with pytest.raises(IncompleteOutput, match="/a is incomplete: 995 of 1,000 plan rows"):
        CodeCache(output, tmp_path / "cache")
    cache = CodeCache(output, tmp_path / "cache", allow_partial=True)
    assert [len(shard) for shard in cache] == [3, 2, 4, 1, 5, 2]
    expected = {clip.clip_id: clip for clip in output.clips()}
    for readers in (1, 3):
        streams = [
            ClipStream(cache, rank=rank, world_size=readers, columns=["caption"])
            for rank in range(readers)
        ]
        found = [clip for stream in streams for clip in stream]
        assert sorted(ids(found)) == sorted(expected)
        for clip in found:
            assert clip["codes"].tolist() == expected[clip["clip_id"]].codes.tolist()
            assert clip["caption"] == expected[clip["clip_id"]].metadata["caption"]
    other = CodeCache(open_output(stores[0].uri), tmp_path / "cache", allow_partial=True)
    mix = ClipMix([cache, other], [1, 1], epoch_clips=34)
    assert sorted({*ids(mix)}) == sorted(expected)


def test_growth_of_one_does_not_disturb_training(stores: list[Store], tmp_path: Path) -> None:
    """Its new shards come before those of later outputs, but no earlier state has them."""

    def stream(**settings: Any) -> ClipStream:
        cache = CodeCache(joined(stores), tmp_path / "cache", allow_partial=True)
        return ClipStream(cache, seed=3, rank=0, world_size=1, **settings)

    keep = {"filter": pc.field("plan_row") != 201}
    for seq, settings in enumerate(({}, keep)):
        reader = iter(before := stream(**settings))
        first = ids([next(reader) for _ in range(5)])
        state = reader.state_dict()
        assert state["num_shards"] == [2 + seq, 1 + seq, 3]
        assert (state["datasets"], state["joined"]) == (["demo"] * 3, [*"abc"])
        left, second = ids(reader), ids(before)
        sequences = iter(TokenSequences(stream(**settings), 8, even="repeat"))
        next(sequences)
        place = sequences.state_dict()
        rest = [item["tokens"].tolist() for item in sequences]

        add(stores[0], 2 + seq, 4, 10 + 10 * seq)
        add(stores[1], 1 + seq, 4, 110 + 10 * seq)
        resumed = stream(**settings)
        assert len(resumed) == len(first) + len(left) + 8
        resumed.resume([state])
        assert ids(resumed) == left
        assert ids(resumed) == second
        reader = iter(stream(**settings))
        reader.load_state_dict(state)
        assert ids(reader) == left
        sequences = iter(TokenSequences(stream(**settings), 8, even="repeat"))
        sequences.load_state_dict(place)
        assert [item["tokens"].tolist() for item in sequences] == rest


def test_a_stream_goes_back_and_forth_between_states(stores: list[Store], tmp_path: Path) -> None:
    states = []
    for seq in range(2, 4):
        cache = CodeCache(joined(stores), tmp_path / "cache", allow_partial=True)
        reader = iter(ClipStream(cache, seed=3))
        next(reader)
        states.append((reader.state_dict(), ids(reader)))
        add(stores[0], seq, 4, 10 * seq)
    stream = ClipStream(CodeCache(joined(stores), tmp_path / "cache", allow_partial=True), seed=3)
    for state, left in (*states, *states):
        stream.resume([state])
        assert ids(stream) == left


def test_an_output_without_shards_may_get_some(stores: list[Store], tmp_path: Path) -> None:
    stores.insert(1, write(tmp_path, "empty", ()))
    reader = iter(ClipStream(CodeCache(joined(stores), tmp_path / "cache", allow_partial=True)))
    next(reader)
    state, left = reader.state_dict(), ids(reader)
    assert state["num_shards"] == [2, 0, 1, 3]
    add(stores[1], 0, 4, 300)
    stream = ClipStream(CodeCache(joined(stores), tmp_path / "cache", allow_partial=True))
    stream.resume([state])
    assert ids(stream) == left
    with pytest.raises(ConfigError, match="the state has num_clips="):
        stream.resume([{**state, "num_shards": [0, 1, 0, 0]}])


def test_a_joined_output_has_no_store_and_state_of_its_own(stores: list[Store]) -> None:
    """Those of the first would be taken for those of all."""
    output = joined(stores)
    assert not {"store", "state"} & vars(output).keys()
    assert [one.store.uri for one in output.joined] == [store.uri for store in stores]


def test_states_name_the_outputs_and_their_order(stores: list[Store], tmp_path: Path) -> None:
    def stream(*stores: Store) -> ClipStream:
        return ClipStream(CodeCache(joined(stores), tmp_path / "cache", allow_partial=True))

    add(stores[1], 1, 1, 150)  # as many shards and clips as the first has
    state = iter(stream(*stores)).state_dict()
    for others in ((stores[1], stores[0], stores[2]), stores[:2], [stores[0]]):
        with pytest.raises(ConfigError, match="the state has "):
            stream(*others).resume([state])


def test_a_clip_in_two_outputs_is_refused(stores: list[Store], tmp_path: Path) -> None:
    other = write(tmp_path, "d", (3, 1), 204)
    for twice, holder, clip in ((stores[0], stores[0], "0"), (other, stores[2], "(cc|cd|ce|cf)")):
        names = f"{holder.uri} and {twice.uri} both have clip 0+{clip}00"
        with pytest.raises(ConfigError, match=f"{names}.*cannot be read as one"):
            joined([*stores, twice])


def ids_of(store: Store) -> list[str]:
    return [clip.clip_id for clip in open_output(store.uri).clips()]


def test_ids_with_the_same_hash_are_two_clips(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_values, "_hash", lambda clip_id: bytes(8))
    output = joined(stores)
    assert [output.clip(one).clip_id for one in ids_of(stores[1])] == ids_of(stores[1])


def test_manifests_are_read_only_if_there_could_be_duplicates(tmp_path: Path) -> None:
    """Ids of other datasets and of other parts differ."""
    parts: list[dict[str, Any]] = [
        {"job": {"part": {"index": index, "of": 2}}} for index in range(2)
    ]
    datasets: list[dict[str, Any]] = [{"dataset": name} for name in ("one", "two")]
    pairs = parts, datasets, [parts[0]] * 2, [parts[0], {}]
    for number, pair in enumerate(pairs):
        stores = [
            write(tmp_path, f"{number}-{index}", (2,), 100 * index, **fields)
            for index, fields in enumerate(pair)
        ]
        assert ("_index" in vars(joined(stores))) == (number > 1)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"fingerprint": "e" * 32}, "fingerprint: 'f{32}' and 'e{32}'"),
        ({"settings": {"sampling": {"fps": 4.0}}}, r"sampling\.fps: 8\.0 and 4\.0"),
        (
            {"plan": {"columns": {"score": "double"}}},
            r"columns: None and \(not set\); columns\.score: \(not set\) and 'double'",
        ),
    ],
)
def test_outputs_that_differ_are_refused(
    fields: dict[str, Any], problem: str, stores: list[Store], tmp_path: Path
) -> None:
    other = write(tmp_path, "other", (2,), 300, **fields)
    with pytest.raises(ConfigError, match=f"cannot be read as one, because .*{problem}.*ClipMix"):
        joined([*stores, other])


def test_several_outputs_cannot_be_followed(stores: list[Store]) -> None:
    uris = [store.uri for store in stores]
    with pytest.raises(ConfigError, match="follow=True does not go with 3 outputs"):
        open_output(uris, follow=True)
    with pytest.raises(ConfigError, match="open them again"):
        open_output(uris).refresh()


def test_a_part_that_is_none_is_damage(stores: list[Store], tmp_path: Path) -> None:
    other = write(tmp_path, "other", (2,), 300, job={"part": {"index": 3, "of": 3}})
    with pytest.raises(CorruptOutput, match="numbered from 0"):
        joined([*stores, other])
