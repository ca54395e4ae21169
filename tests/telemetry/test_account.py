"""Which stage limits a job, and how close the job is to the speed of its encoders."""

import pytest

from tokpipe.telemetry.account import ACTIVITIES, NOUNS, Account, Activity, Speed
from tokpipe.types import STAGES


def seconds(up: float = 100.0, **spent: float) -> Account:
    return Account({one: spent.get(one, 0.0) for one in ACTIVITIES}, dict.fromkeys(STAGES, up))


def speed(account: Account) -> Speed:
    found = account.speed
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ({"decode": 40, "encode": 99}, "encode"),
        ({"decode": 99, "encode": 60}, "decode"),
        ({"download": 80, "decode": 19, "encode": 60}, "download"),
        ({"decode": 50, "encode": 40, "transfer": 55}, "transfer"),
        ({"decode": 50, "encode": 60, "write": 98}, "write"),
        ({"decode": 100, "encode": 98.5}, "encode"),
        ({"decode": 30, "encode": 30, "write": 1}, None),
    ],
)
def test_the_busiest_stage_limits(spent: dict[str, float], limit: Activity | None) -> None:
    found = speed(seconds(**spent))
    assert (found.limit, found.share) == (limit, spent["encode"] / 100)


def test_a_stage_is_as_busy_as_its_own_actors() -> None:
    up: dict[str, float] = {"decode": 1000.0, "encode": 100.0, "write": 10.0}
    found = speed(Account({"decode": 500.0, "encode": 60.0, "write": 9.0}, up))
    assert (found.limit, found.limit_share) == ("write", 0.9)


def test_there_is_no_speed_before_an_encoder_is_up() -> None:
    assert Account().speed is None
    assert seconds(up=0.0).speed is None


def test_a_share_is_at_most_one_even_if_a_lease_started_before_the_window() -> None:
    found = speed(seconds(up=20.0, encode=30.0) - seconds(up=10.0))
    assert (found.share, found.limit_share) == (1.0, 1.0)


def test_the_line_names_the_limit() -> None:
    def line(**spent: float) -> str:
        return speed(seconds(**spent)).text

    assert line(encode=97, transfer=1) == "encoders busy 97%: as fast as they can go"
    assert line(encode=60, decode=98) == "encoders busy 60%, limited by decoding (busy 98%)"
    assert line(encode=10) == "encoders busy 10%: no stage is busy enough to name a limit"


def test_every_limit_comes_with_something_to_change() -> None:
    for activity in ACTIVITIES:
        text = Speed(0.59, activity, 0.98).advice
        is_encode = activity == "encode"
        limit = ": as fast" if is_encode else f", limited by {NOUNS[activity]} (busy 98%)"
        assert text.startswith(f"encoders busy 59%{limit}")
        assert len(text.partition(". ")[2]) > 20
    assert Speed(0.1, None, 0.2).advice.endswith("no stage is busy enough to name a limit")
