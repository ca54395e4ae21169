"""Which outputs are kept, and for how long."""

from tests.runtime.bench import Bench, only, refs_of, released
from tests.runtime.test_fleet import fleet_of
from tokpipe.runtime.dispatch.blame import RETRY_PAUSE_S
from tokpipe.runtime.dispatch.outbox import Outbox, Outputs
from tokpipe.runtime.dispatch.protocol import Dispatch, EncodedInfo, Lease, Place
from tokpipe.types import Failed


def test_an_output_is_released_with_its_last_clip() -> None:
    outputs = Outputs(out := Outbox())
    outputs.keep(7, [Place(7, at) for at in range(3)])
    outputs.use_up([Place(7, 0), Place(7, 2)])
    assert not out.take()
    outputs.use_up([Place(7, 1)])
    outputs.keep(8, [])
    assert released(out.take()) == {7, 8}


def test_an_attempt_ends_once() -> None:
    fleet = fleet_of(1, out := Outbox())
    for _ in range(2):
        fleet.assign(Lease("decode", ()), 1)
    first, _ = only(Dispatch, out.take())
    assert fleet.end(first.attempt) == (first, 0.0)
    assert (fleet.end(first.attempt), fleet.num_leased["decode"]) == (None, 1)


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
