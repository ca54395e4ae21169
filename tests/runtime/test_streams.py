"""Streamed clips: encoded in order, decoded ahead, released however they end."""

from tests.runtime.bench import Bench, only, refs_of, released
from tokpipe.runtime.dispatch import protocol
from tokpipe.types import Rejected

NUM_PIECES = 9


def streamed() -> tuple[Bench, list[protocol.Dispatch]]:
    """A streamed clip whose first piece was just decoded, and what was dispatched then."""
    bench = Bench(3)
    decode_piece(bench, bench.in_flight()[0])
    return bench, bench.in_flight()


def decode_piece(bench: Bench, dispatch: protocol.Dispatch) -> list[protocol.Command]:
    return bench.done(dispatch, protocol.DecodedInfo(refs_of(dispatch)[0], 17, NUM_PIECES))


def test_pieces_are_encoded_in_order_and_decoded_a_little_ahead() -> None:
    bench, leased = streamed()
    pieces = [(one.lease.stage, one.lease.items[0].piece) for one in leased]
    assert pieces == [("decode", 1), ("decode", 2), ("encode", 0)]
    for decode in leased[:2]:
        assert not only(protocol.Dispatch, decode_piece(bench, decode)), "decoded too far ahead"
    encode = leased[2]
    states: list[int] = []
    for piece in (1, 2):
        commands = bench.done(encode)
        kept = [
            one.attempt for one in only(protocol.Release, commands) if one.part == protocol.STATE
        ]
        assert kept == states, "a state is kept until the next one exists, and no longer"
        states = [encode.attempt]
        decode, encode = only(protocol.Dispatch, commands)
        assert decode.lease.items[0].piece == piece + 2
        assert (encode.lease.items[0].piece, encode.lease.state) == (piece, states[0])


def test_a_lost_worker_costs_only_its_piece() -> None:
    bench, (_, _, encode) = streamed()
    bench.lose(encode.actor)
    bench.bring_up()
    (again,) = bench.in_flight("encode")
    assert again.lease == encode.lease


def test_a_lost_state_restarts_the_clip() -> None:
    bench, (ahead, _, first) = streamed()
    decode_piece(bench, ahead)
    bench.done(first)
    (encode,) = bench.in_flight("encode")
    commands = bench.fail(encode, "inputs_lost")
    assert {first.attempt, ahead.attempt, encode.attempt} <= released(commands)
    for decode in bench.in_flight():  # pieces decoded ahead, in vain
        assert decode.attempt in released(decode_piece(bench, decode))
    (again,) = bench.in_flight()
    assert (again.lease.stage, again.lease.items[0].piece) == ("decode", 0)
    assert "decode" not in bench.account.clips or bench.account.clips["decode"] == 0


def test_a_rejected_piece_rejects_the_clip_and_releases_all_of_it() -> None:
    bench, (ahead, _, encode) = streamed()
    commands = bench.done(ahead, Rejected(refs_of(ahead)[0], "decode", "corrupt", ""))
    assert encode.lease.places[0].source in released(commands)
    assert bench.account.rejected_at == {"decode": 1}
    # Answers to what is still in flight are ignored.
    assert encode.attempt in released(bench.done(encode))
    assert "encode" not in bench.account.clips


def test_pieces_are_decoded_from_the_version_that_was_read_first() -> None:
    bench = Bench(3)
    (first,) = bench.in_flight()
    bench.done(first, protocol.DecodedInfo(refs_of(first)[0], 17, NUM_PIECES, version=7))
    assert [one.lease.items[0].version for one in bench.in_flight("decode")] == [7, 7]
