"""Sequences hold every code of every clip once, in order, with its position and clip."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from tokpipe.errors import ConfigError
from tokpipe.reader import ClipMix, ClipStream, CodeCache, TokenSequences, document_mask
from tokpipe.reader.compose import Template, Vocabulary
from tokpipe.reader.sequences import FlattenOrder

LENGTHS = [1, 7, 64, 1000, 10_000]


def joined(items: list[dict[str, Any]], key: str) -> Any:
    return np.concatenate([item[key] for item in items])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("order", get_args(FlattenOrder))
def test_every_code_occurs_once_at_its_position(
    cache: CodeCache, order: FlattenOrder, length: int
) -> None:
    stream = ClipStream(cache, seed=1)
    sequences = TokenSequences(stream, length, order=order)
    items = list(sequences)
    assert {len(item["tokens"]) for item in items} == {length}
    tokens, positions = joined(items, "tokens"), joined(items, "positions")
    at = 0
    stream.set_epoch(0)
    for sample in stream:
        codes = sample["codes"]
        assert tokens[at] == sequences.separator
        here = slice(at + 1, at + 1 + codes.size)
        np.testing.assert_array_equal(codes[tuple(positions[here].T)], tokens[here])
        slowest = positions[here, "thw".index(order[0])]
        assert (np.diff(slowest) >= 0).all()
        at += 1 + codes.size
    assert (tokens[at:] == sequences.padding).all()
    assert len(tokens) - at < length
    assert tokens.max() < sequences.vocab_size
    stream.set_epoch(0)
    assert len(list(TokenSequences(stream, length, drop_last=True))) == at // length


def test_documents_separate_clips(cache: CodeCache) -> None:
    sequences = TokenSequences(ClipStream(cache), 100)
    for item in sequences:
        tokens, documents = item["tokens"], item["documents"]
        begins = tokens == sequences.separator
        is_clip = documents[1:] >= 0
        np.testing.assert_array_equal(np.diff(documents)[is_clip], begins[1:][is_clip])
        assert ((documents == -1) == (tokens == sequences.padding)).all()
        mask = document_mask(documents)
        for i, j in itertools.product(range(0, 100, 7), range(100)):
            allowed = i >= j and documents[i] == documents[j] >= 0
            assert mask[i, j] == allowed


@pytest.mark.parametrize("length", [7, 20, 64, 1000])
def test_resuming_at_any_sequence_changes_nothing(
    open_stream: Callable[..., ClipMix], length: int
) -> None:
    def fresh() -> TokenSequences:
        return TokenSequences(open_stream(rank=1, world_size=2), length)

    whole = [item["tokens"].tolist() for item in fresh()]
    for stop in range(0, len(whole) + 1, max(1, len(whole) // 9)):
        reader, again = iter(fresh()), iter(fresh())
        for _ in range(stop):
            next(reader)
        again.load_state_dict(json.loads(json.dumps(reader.state_dict())))
        assert [item["tokens"].tolist() for item in again] == whole[stop:]


def test_other_readers_start_an_unfinished_clip_over(cache: CodeCache) -> None:
    readers = [
        iter(TokenSequences(ClipStream(cache, seed=5, rank=rank, world_size=2), 50))
        for rank in range(2)
    ]
    for reader in readers:
        for _ in range(3):
            next(reader)
    states = [reader.state_dict() for reader in readers]
    stream = ClipStream(cache, seed=5)
    stream.resume(states)
    finished = sum(state["clips"]["taken"] for state in states)
    assert len(stream) == len(ClipStream(cache)) - finished
    num_clips = len(stream)
    tokens = joined(list(TokenSequences(stream, 50)), "tokens")
    assert (tokens == cache.tokenizer.codebook_size).sum() == num_clips


def test_a_length_below_one_is_rejected(cache: CodeCache) -> None:
    with pytest.raises(ConfigError, match="length=0"):
        TokenSequences(ClipStream(cache), 0)


def bracketed(cache: CodeCache) -> Template:
    size = cache.tokenizer.codebook_size
    special = {name: size + number for number, name in enumerate(("bov", "eof", "eov", "pad"))}
    vocabulary = Vocabulary([{"size": size, "offset": 0}], special=special, pad="pad")
    return Template("{bov}{frames:{frame}{eof}}{eov}", vocabulary, finds_shape=False)


@pytest.mark.parametrize("cut", ["anywhere", "frames", "never"])
def test_packed_documents_parse_back_and_resume(cache: CodeCache, cut: Any) -> None:
    template, clips = bracketed(cache), [*ClipStream(cache, seed=1)]
    longest = max(len(template.compose(one["codes"]).tokens) for one in clips)

    def fresh() -> TokenSequences:
        stream = ClipStream(cache, seed=1)
        return TokenSequences(stream, longest + 5, template=template, cut=cut)

    items = list(fresh())
    kept = joined(items, "documents") >= 0
    tokens, index = joined(items, "tokens")[kept], joined(items, "index")[kept]
    pieces = np.split(tokens, np.flatnonzero(index == 0)[1:])
    for piece, sample in zip(pieces, clips, strict=True):
        shape = sample["codes"].shape
        np.testing.assert_array_equal(template.parse(piece, shape).codes, sample["codes"])
    begins = [item["index"][0] for item in items]
    assert any(begins) == (cut != "never")
    eof = template.vocabulary.special["eof"]
    if cut == "frames":
        for before, item in itertools.pairwise(items):
            if item["index"][0]:
                assert before["tokens"][before["documents"] >= 0][-1] == eof
    for stop in range(len(items)):
        reader, again = iter(fresh()), iter(fresh())
        for _ in range(stop):
            next(reader)
        again.load_state_dict(json.loads(json.dumps(reader.state_dict())))
        assert [one["tokens"].tolist() for one in again] == [
            one["tokens"].tolist() for one in items[stop:]
        ]


def test_a_clip_that_fits_no_sequence_is_an_error_or_cut(cache: CodeCache) -> None:
    stream, template = ClipStream(cache), bracketed(cache)
    with pytest.raises(ConfigError, match="raise it, or use long='cut'"):
        list(TokenSequences(stream, 20, template=template, cut="never"))
    assert list(TokenSequences(stream, 20, template=template, cut="never", long="cut"))


@pytest.mark.parametrize("num_sequences", [1, 3, 9, 40])
def test_every_reader_yields_its_number_of_sequences_and_resumes(
    open_stream: Callable[..., ClipMix], num_sequences: int
) -> None:
    def fresh(rank: int) -> TokenSequences:
        stream = open_stream(rank=rank, world_size=3)
        return TokenSequences(stream, 50, num_sequences=num_sequences)

    for rank in range(3):
        assert len(fresh(rank)) == num_sequences
        whole = [item["tokens"].tolist() for item in fresh(rank)]
        assert len(whole) == num_sequences
        once = joined(list(TokenSequences(open_stream(rank=rank, world_size=3), 50)), "tokens")
        own = once[once != fresh(rank).padding]
        np.testing.assert_array_equal(np.ravel(whole), np.resize(own, num_sequences * 50))
        for stop in range(0, num_sequences + 1, 3):
            reader, again = iter(fresh(rank)), iter(fresh(rank))
            for _ in range(stop):
                next(reader)
            again.load_state_dict(json.loads(json.dumps(reader.state_dict())))
            assert [item["tokens"].tolist() for item in again] == whole[stop:]


def test_epochs_with_a_number_of_sequences_end_and_other_readers_go_on(cache: CodeCache) -> None:
    for number in (2, 40):  # clips that are left out, and that are read again
        streams = [ClipStream(cache, seed=5, rank=rank, world_size=2) for rank in range(2)]
        readers = [iter(TokenSequences(one, 50, num_sequences=number)) for one in streams]
        for reader in readers:
            assert len([*reader]) == number
        stream = ClipStream(cache, seed=5)
        stream.resume([reader.state_dict() for reader in readers])
        assert stream.epoch == 1


def test_readers_without_clips_read_those_of_others(cache: CodeCache) -> None:
    number = len(ClipStream(cache)) + 2
    stream = ClipStream(cache, rank=number - 1, world_size=number)
    assert not [*TokenSequences(stream, 50)]
    stream.set_epoch(0)
    items = [*TokenSequences(stream, 50, num_sequences=3)]
    assert len(items) == 3
    assert (joined(items, "documents") >= 0).all()


def test_a_state_of_other_sequences_is_rejected(cache: CodeCache) -> None:
    def reader(**settings: Any) -> Any:
        return iter(TokenSequences(ClipStream(cache), **{"length": 50, **settings}))

    state = reader().state_dict()
    others: list[tuple[dict[str, Any], str]] = [
        ({"length": 51}, "length=50, but these sequences have length=51"),
        ({"order": "twh"}, "template="),
        ({"template": bracketed(cache)}, "template="),
        ({"cut": "frames"}, "cut=anywhere"),
        ({"num_sequences": 3}, "num_sequences=None"),
    ]
    for settings, problem in others:
        with pytest.raises(ConfigError, match=problem):
            reader(**settings).load_state_dict(state)
    with pytest.raises(ConfigError, match="the state is damaged"):
        reader().load_state_dict({**state, "given": -1})


def test_loaders_know_their_number_of_batches(cache: CodeCache) -> None:
    from torch.utils.data import DataLoader

    from tokpipe.reader.dataset import ClipDataset

    sequences = TokenSequences(ClipStream(cache), 50, num_sequences=5)
    loader = DataLoader(ClipDataset(sequences), batch_size=2, num_workers=2)
    assert len(loader) == len([*loader]) == 6
    with pytest.raises(TypeError, match="pass num_sequences"):
        len(TokenSequences(ClipStream(cache), 50))


@pytest.mark.parametrize("even", ["drop", "repeat"])
def test_even_readers_yield_as_many_sequences(
    even: Any, open_stream: Callable[..., ClipMix]
) -> None:
    def of(rank: int) -> TokenSequences:
        return TokenSequences(open_stream(rank=rank, world_size=4), 50, even=even)

    whole = open_stream()
    num_tokens = sum(sample["codes"].size + 1 for sample in whole)
    exact = num_tokens / (4 * 50)
    wanted = math.floor(exact) if even == "drop" else math.ceil(exact)
    assert [len([*of(rank)]) for rank in range(4)] == [wanted] * 4
    assert [len(of(rank)) for rank in range(4)] == [wanted] * 4
    running, resumed = iter(of(1)), iter(of(1))
    first = [next(running) for _ in range(2)]
    resumed.load_state_dict(running.state_dict())
    again = [item["tokens"].tolist() for item in [*first, *resumed]]
    assert again == [item["tokens"].tolist() for item in of(1)]


def test_even_needs_to_know_the_tokens(cache: CodeCache) -> None:
    with pytest.raises(ConfigError, match="even='drop' does not go with num_sequences"):
        TokenSequences(ClipStream(cache), 50, even="drop", num_sequences=3)
    with pytest.raises(ConfigError, match="pass num_sequences alone"):
        TokenSequences(ClipStream(cache), 50, even="drop", template=bracketed(cache))
    with pytest.raises(ConfigError, match="pass num_sequences alone"):
        TokenSequences(ClipStream(cache, locality="node"), 50, even="drop")
