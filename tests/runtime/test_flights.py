"""Which outputs are kept, and for how long."""

from tests.runtime.bench import Bench, refs_of, released
from tokpipe.runtime.dispatch.blame import RETRY_PAUSE_S
from tokpipe.runtime.dispatch.outbox import Flights, Outbox
from tokpipe.runtime.dispatch.protocol import Dispatch, EncodedInfo, Lease, Place
from tokpipe.types import Failed


def test_an_output_is_released_with_its_last_clip() -> None:
    flights = Flights(out := Outbox())
    flights.keep(7, [Place(7, at) for at in range(3)])
    flights.use_up([Place(7, 0), Place(7, 2)])
    assert not out.take()
    flights.use_up([Place(7, 1)])
    flights.keep(8, [])
    assert released(out.take()) == {7, 8}


def test_an_attempt_ends_once() -> None:
    flights, lease = Flights(Outbox()), Lease("decode", ())
    for flight in (first := Dispatch(1, 5, lease), Dispatch(2, 5, lease)):
        flights.start(flight)
    assert flights.end(1) is first
    assert (flights.end(1), flights.num["decode"]) == (None, 1)


def test_pixels_of_a_clip_that_failed_to_encode_are_kept_for_the_retry() -> None:
    bench = Bench(0, 1)
    (decode,) = bench.in_flight()
    bench.done(decode)
    (encode,) = bench.in_flight()
    good, bad = refs_of(encode)
    codes, failed = EncodedInfo(good, (4, 4), 1), Failed(bad, "encode_error", "broke")
    assert decode.attempt not in released(bench.done(encode, codes, failed))
    bench.tick(RETRY_PAUSE_S + 0.1)
    (again,) = bench.in_flight("encode")
    assert again.lease.places == (Place(decode.attempt, 1),)
    assert decode.attempt in released(bench.done(again))
