"""Every iteration is the next epoch, wherever the reader lives, and all ranks take equal steps."""

import itertools
import math
import multiprocessing
import multiprocessing.forkserver
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from tests.conftest import S3Bucket
from tests.reader.reader_helpers import ids, write_clips
from tests.reader.test_compose import trained
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache, TokenSequences, open_output
from tokpipe.reader.compose import Template, Vocabulary
from tokpipe.reader.dataset import ClipDataset
from tokpipe.reader.order import Even, Remaining, Share
from tokpipe.storage import Store

OpenStream = Callable[..., ClipMix]

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on few cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # by torchdata
]

LOADERS: list[Any] = [pytest.param(DataLoader, {}, id="none")]
for kind, method, keep in itertools.product(
    (DataLoader, StatefulDataLoader), ("fork", "spawn", "forkserver"), (True, False)
):
    how = {"num_workers": 2, "multiprocessing_context": method, "persistent_workers": keep}
    is_slow = method != "fork" and not keep and kind is StatefulDataLoader
    name = f"{kind.__name__}-{method}-{'persistent' if keep else 'new'}"
    LOADERS.append(pytest.param(kind, how, id=name, marks=[pytest.mark.slow] * is_slow))


def epochs_of(stream: ClipMix, number: int) -> list[list[str]]:
    """The clips of each epoch, in the order of a single reader."""
    return [ids(stream) for _ in range(number)]


def clips_of(batches: Any) -> list[str]:
    return [clip for batch in batches for clip in batch]


@pytest.mark.parametrize(("kind", "how"), LOADERS)
def test_each_iteration_of_a_loader_is_the_next_epoch(
    kind: Any, how: dict[str, Any], open_stream: OpenStream
) -> None:
    stream = open_stream()
    loader = kind(ClipDataset(stream), batch_size=4, collate_fn=ids, **how)
    found = [clips_of(loader) for _ in range(3)]
    assert found[0] != found[1] != found[2] != found[0]
    for epoch, wanted in zip(found, epochs_of(open_stream(), 3), strict=True):
        assert sorted(epoch) == sorted(wanted)
    stream.set_epoch(1)
    assert clips_of(loader) == found[1]


def test_sequences_go_on_to_the_next_epoch_as_their_clips_do(cache: CodeCache) -> None:
    sequences = TokenSequences(ClipStream(cache), 64)
    loader: Any = DataLoader(
        ClipDataset(sequences), batch_size=None, num_workers=2, persistent_workers=True
    )
    first, second = ([item["tokens"].tolist() for item in loader] for _ in range(2))
    assert first != second
    sequences.set_epoch(0)
    assert [item["tokens"].tolist() for item in loader] == first


def composed(stream: ClipMix, path: Path) -> TokenSequences:
    """Sequences of captions and codes, of which every reader yields four."""
    size = stream.tokenizer.codebook_size
    special = {"bov": 9000, "eof": 9001, "eov": 9002, "pad": 9003}
    vocabulary = Vocabulary([{"size": size, "offset": 500}], special=special, pad="pad", text=path)
    template = Template("{caption}{bov}{frames:{frame}{eof}}{eov}", vocabulary, finds_shape=False)
    return TokenSequences(stream, 100, template=template, cut="never", num_sequences=4)


def documents_of(items: Any) -> list[tuple[int, ...]]:
    return [
        tuple(item["tokens"][item["documents"] == number].tolist())
        for item in items
        for number in range(int(item["documents"].max()) + 1)
    ]


@pytest.mark.parametrize(
    ("kind", "how"), [one for one in LOADERS if one.values[0] is StatefulDataLoader]
)
def test_composed_sequences_take_equal_steps_in_every_epoch_and_resume(
    kind: Any, how: dict[str, Any], cache: CodeCache, tmp_path: Path
) -> None:
    trained().save(str(tmp_path / "tokenizer.json"))

    def loader_of(rank: int) -> Any:
        stream = ClipStream(cache, columns=["caption"], rank=rank, world_size=2)
        sequences = composed(stream, tmp_path / "tokenizer.json")
        return kind(ClipDataset(sequences), batch_size=None, **how)

    loaders = [loader_of(rank) for rank in range(2)]
    epochs = [[list(loader) for loader in loaders] for _ in range(3)]
    assert {len(items) for epoch in epochs for items in epoch} == {2 * 4}
    clips = [[documents_of(items) for items in epoch] for epoch in epochs]
    assert clips[0] != clips[1] != clips[2] != clips[0]
    for epoch in clips:
        assert not {*epoch[0]} & {*epoch[1]}, "ranks read different clips"
    loader, resumed = loader_of(0), loader_of(0)
    list(loader)
    running = iter(loader)
    first = [next(running) for _ in range(3)]
    resumed.load_state_dict(loader.state_dict())
    assert documents_of([*first, *resumed]) == clips[1][0]
    assert documents_of(resumed) == clips[2][0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_iterations_at_once_are_two_epochs(num_workers: int, open_stream: OpenStream) -> None:
    stream = open_stream()
    loader: Any = DataLoader(
        ClipDataset(stream), batch_size=3, collate_fn=ids, num_workers=num_workers
    )
    one, other = [], []
    for left, right in zip(loader, loader, strict=True):
        one += left
        other += right
        stream.set_epoch(7)  # changes neither
    wanted = [sorted(epoch) for epoch in epochs_of(open_stream(), 2)]
    assert [sorted(one), sorted(other)] == wanted
    assert stream.epoch == 7


def test_a_seed_that_is_set_anew_does_not_repeat_an_epoch(cache: CodeCache) -> None:
    import torch

    loader: Any = DataLoader(ClipDataset(ClipStream(cache)), batch_size=None, num_workers=2)
    orders = []
    for _ in range(3):
        torch.manual_seed(0)
        orders.append(ids(loader))
    assert orders[0] != orders[1] != orders[2]


def test_an_iterator_that_is_not_used_takes_no_epoch(cache: CodeCache) -> None:
    stream = ClipStream(cache)
    iter(stream)
    assert stream.epoch == 0
    next(iter(stream))
    assert stream.epoch == 1


def test_a_pickled_stream_goes_on_from_where_it_was(cache: CodeCache) -> None:
    stream = ClipStream(cache)
    first, second, third = epochs_of(ClipStream(cache), 3)
    assert ids(stream) == first
    copy: ClipStream = pickle.loads(pickle.dumps(stream))
    assert [ids(copy), ids(copy)] == [second, third]
    assert ids(stream) == second, "copies count for themselves"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_from_the_end_of_an_epoch_resumes_with_the_next(
    num_workers: int, open_stream: OpenStream
) -> None:
    def loader_of(stream: ClipMix) -> Any:
        return StatefulDataLoader(
            ClipDataset(stream), batch_size=3, collate_fn=ids, num_workers=num_workers
        )

    def states() -> Iterator[tuple[Any, list[str]]]:
        """States after each batch of two epochs, and the clips that the rest of them has."""
        whole = [[*loader] for loader in [loader_of(open_stream())] for _ in range(2)]
        loader = loader_of(open_stream())
        for epoch in range(2):
            for number, _ in enumerate(loader, 1):
                rest = whole[epoch][number:] or (whole[1] if epoch == 0 else None)
                if rest is not None:
                    yield loader.state_dict(), clips_of(rest)

    for state, rest in [*states()][:: 3 if num_workers else 1]:
        stream = open_stream()
        stream.resume([state])
        assert sorted(clips_of(loader_of(stream))) == sorted(rest)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_loader_resumes_with_the_rest_or_the_next_epoch(
    num_workers: int, cache: CodeCache
) -> None:
    def fresh() -> Any:
        dataset = ClipDataset(ClipStream(cache, seed=3))
        return StatefulDataLoader(dataset, 4, num_workers=num_workers, collate_fn=ids)

    loader = fresh()
    epochs = [list(loader) for _ in range(3)]
    again, middle = fresh(), fresh()
    loader = fresh()
    list(loader)
    again.load_state_dict(loader.state_dict())
    assert list(again) == epochs[1]
    running = iter(loader)
    assert [next(running) for _ in range(2)] == epochs[1][:2]
    middle.load_state_dict(loader.state_dict())
    assert list(middle) == epochs[1][2:]
    assert list(middle) == epochs[2]


@pytest.mark.parametrize("even", [None, "repeat"])
def test_readers_without_a_clip_stay_in_the_epoch_of_the_others(
    even: Even | None, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "out"), StoreOptions())
    write_clips(store, (2,))
    stream = ClipStream(CodeCache(open_output(store.uri), tmp_path / "cache"), even=even)
    loader: Any = StatefulDataLoader(
        ClipDataset(stream), batch_size=None, num_workers=5, persistent_workers=True
    )
    wanted = sorted(clip.clip_id for clip in open_output(store.uri).clips())
    for epoch in range(3):
        assert sorted({*ids(loader)}) == wanted
        assert stream.epoch == epoch + 1


def test_an_epoch_of_which_even_readers_would_get_nothing_is_rejected(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"), StoreOptions())
    write_clips(store, (2,))
    cache = CodeCache(open_output(store.uri), tmp_path / "cache")
    stream = ClipStream(cache, even="drop", rank=0, world_size=3)
    with pytest.raises(ConfigError, match="an epoch of 2 clips leaves none for 3 readers"):
        next(iter(stream))


@pytest.mark.s3
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_from_a_store(method: str, s3_bucket: S3Bucket, tmp_path: Path) -> None:
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it has an earlier environment
    caches = []
    for name in ("one", "two", "three"):
        store = Store(f"{s3_bucket.uri}/{name}", StoreOptions())
        write_clips(store, (5, 3, 4))
        caches.append(CodeCache(open_output(store.uri), tmp_path / name))

    def loader_of() -> Any:
        return StatefulDataLoader(
            ClipDataset(ClipMix(caches, [1, 1, 1], even="drop")),
            batch_size=4,
            collate_fn=ids,
            num_workers=2,
            multiprocessing_context=method,
            persistent_workers=True,
        )

    loader, resumed = loader_of(), loader_of()
    epochs = [clips_of(loader) for _ in range(3)]
    loader = loader_of()
    running = iter(loader)
    first = [next(running) for _ in range(3)]
    resumed.load_state_dict(loader.state_dict())
    assert clips_of([*first, *resumed]) == epochs[0]
    assert clips_of(resumed) == epochs[1]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    for epoch in epochs:
        assert set(Counter(epoch).values()) == {3}, "the same clip of each output"
        assert len(epoch) == 36


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    num_readers=st.integers(1, 9),
    even=st.sampled_from(["drop", "repeat"]),
)
def test_even_readers_get_the_same_number_of_clips(
    sizes: list[int], num_readers: int, even: Even
) -> None:
    left = Remaining(sizes, [0] * len(sizes), [[]] * len(sizes), seed=5)
    total, found = sum(sizes), []
    for reader in range(num_readers):
        share = Share(left, reader, num_readers, even)
        counts = [0] * len(sizes)
        for taken in range(len(share)):
            source, position = share.item(counts)
            assert 0 <= position < sizes[source]
            found.append((source, position))
            assert share.counts(taken) == counts or even == "repeat"
            counts[source] += 1
    each = total // num_readers if even == "drop" else math.ceil(total / num_readers)
    assert len(found) == each * num_readers
    assert abs(len(found) - total) < num_readers
    assert len(set(found)) == (len(found) if even == "drop" else total)


@pytest.mark.parametrize("even", [None, "drop", "repeat"])
def test_resuming_evenly_reads_the_rest(even: Even | None, open_stream: OpenStream) -> None:
    readers = [iter(open_stream(rank=rank, world_size=3, even=even)) for rank in range(3)]
    seen = [one for reader in readers for one in ids(islice(reader, 4))]
    states = [reader.state_dict() for reader in readers]
    rest = []
    for rank in range(4):
        stream = open_stream(rank=rank, world_size=4, even=even)
        stream.resume(states)
        length = len(stream)
        mine = ids(stream)
        assert len(mine) == length
        rest.append(mine)
    wanted = ids(open_stream())
    assert len({len(one) for one in rest}) == 1 or even is None
    left_out = [*wanted]
    for one in [*seen, *(clip for mine in rest for clip in mine)]:
        if one in left_out:
            left_out.remove(one)
        else:
            assert even == "repeat"
    assert len(left_out) < 4 if even == "drop" else not left_out


@pytest.mark.parametrize("even", [None, "drop", "repeat"])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_length_of_a_loader_is_its_number_of_batches(
    even: Even | None, drop_last: bool, num_workers: int, cache: CodeCache
) -> None:
    for rank in range(2):
        stream = ClipStream(cache, rank=rank, world_size=2, even=even)
        loader: Any = DataLoader(
            ClipDataset(stream),
            batch_size=2,
            num_workers=num_workers,
            drop_last=drop_last,
            collate_fn=ids,
        )
        length = len(loader)
        assert sum(1 for _ in loader) == length


def test_ranks_come_from_the_environment_unless_given(
    cache: CodeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, alone = ClipStream(cache), ClipStream(cache, rank=0, world_size=1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    wanted = ids(ClipStream(cache, rank=1, world_size=3))
    assert ids(stream) == wanted
    assert len(ids(alone)) == len(alone) == cache.output.num_clips
    for method in multiprocessing.get_all_start_methods():
        loader: Any = DataLoader(
            ClipDataset(stream), batch_size=None, num_workers=1, multiprocessing_context=method
        )
        stream.set_epoch(0)
        assert ids(loader) == wanted
    with pytest.raises(ConfigError, match="pass both, or neither"):
        ClipStream(cache, rank=1)
