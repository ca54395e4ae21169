"""Real answers, lost, cut, late and wrong: a proxy in front of a real S3 server."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import S3Bucket
from tests.s3_server import S3Server
from tests.storage.fault_proxy import Decide, Fault, FaultProxy, Refusal, Request
from tests.storage.listed import sizes
from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, NotFound, StorageError, UnsafeStore
from tokpipe.storage import Store, open_store, probe_store

pytestmark = pytest.mark.s3


class Spoiled:
    """A store behind the proxy, and the same store without it."""

    def __init__(self, bucket: S3Bucket, proxy: FaultProxy) -> None:
        self._uri = f"{bucket.uri}/{uuid.uuid4().hex}"
        self._proxy = proxy
        self.plain: Store = open_store(self._uri, StoreOptions(deadline_s=20))

    def by(self, decide: Decide, deadline_s: float = 20.0) -> Store:
        self._proxy.spoil_by(decide)
        options = {"s3": {"endpoint_url": self._proxy.endpoint}}
        return open_store(self._uri, StoreOptions(options=options, deadline_s=deadline_s))

    @property
    def requests(self) -> list[Request]:
        return self._proxy.requests


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def spoiled(s3_bucket: S3Bucket, proxy: FaultProxy) -> Spoiled:
    return Spoiled(s3_bucket, proxy)


def first(num: int, fault: Fault | Refusal) -> Decide:
    return lambda request: fault if request.number < num else None


def test_a_create_whose_answer_is_lost_is_known_to_be_ours(spoiled: Spoiled) -> None:
    store = spoiled.by(first(1, Fault.LOSE_ANSWER))
    assert store.create("manifest/0", b"mine")
    assert spoiled.plain.get("manifest/0") == b"mine"
    # Put, put again and refused, read back.
    assert [request.method for request in spoiled.requests] == ["PUT", "PUT", "GET"]


def test_a_create_whose_answer_is_lost_and_that_another_won_is_not_ours(spoiled: Spoiled) -> None:
    spoiled.plain.put("manifest/0", b"theirs")
    store = spoiled.by(first(1, Fault.LOSE_ANSWER))
    assert not store.create("manifest/0", b"mine")
    assert spoiled.plain.get("manifest/0") == b"theirs"


def test_a_create_in_parts_survives_the_loss_of_its_last_answer(spoiled: Spoiled) -> None:
    lost: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if request.method == "POST" and request.is_exclusive and not lost:
            lost.append(request)
            return Fault.LOSE_ANSWER
        return None

    data = bytes(range(256)) * 2**16
    assert spoiled.by(decide).create("large", data)
    assert spoiled.plain.get("large") == data
    assert lost


def test_two_writers_on_a_lossy_line_agree_on_who_won(spoiled: Spoiled) -> None:
    # Every third answer is lost; trusting the refusals would give wrong beliefs within rounds.
    store = spoiled.by(lambda request: Fault.LOSE_ANSWER if request.number % 3 == 0 else None)
    beliefs: dict[tuple[int, int], bool] = {}

    def write(writer: int) -> None:
        for key in range(8):
            beliefs[key, writer] = store.create(f"manifest/{key}", f"attempt {writer}".encode())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in range(8):
        winner = int(spoiled.plain.get(f"manifest/{key}").removeprefix(b"attempt "))
        assert [beliefs[key, writer] for writer in range(2)] == [winner == 0, winner == 1]


@pytest.mark.parametrize(
    "fault",
    [
        Refusal(503, "SlowDown"),
        Refusal(500, "InternalError"),
        Refusal(429, "TooManyRequests"),
        Refusal(409, "ConditionalRequestConflict"),
        Refusal(400, "RequestTimeout"),
        Fault.RESET,
    ],
    ids=lambda fault: fault.name if isinstance(fault, Fault) else fault.code,
)
def test_passing_trouble_is_retried(spoiled: Spoiled, fault: Fault | Refusal) -> None:
    assert spoiled.by(first(1, fault)).create("a", b"1")
    assert spoiled.by(first(1, fault)).get("a") == b"1"
    assert spoiled.by(first(1, fault)).size("a") == 1
    assert sizes(spoiled.by(first(1, fault)), "") == {"a": 1}
    spoiled.by(first(1, fault)).delete("a")
    assert spoiled.plain.size("a") is None


def test_an_answer_cut_short_is_asked_for_again(spoiled: Spoiled) -> None:
    spoiled.plain.put("a", b"0123456789")
    assert spoiled.by(first(1, Fault.CUT_ANSWER)).get("a") == b"0123456789"
    assert spoiled.by(first(1, Fault.CUT_ANSWER)).get_range("a", 2, 8) == b"234567"


def test_a_request_that_is_never_answered_is_given_up_and_tried_again(spoiled: Spoiled) -> None:
    spoiled.plain.put("a", b"1")
    started = time.monotonic()
    assert spoiled.by(first(1, Fault.HANG), deadline_s=4).get("a") == b"1"
    assert time.monotonic() - started < 4


def test_trouble_without_end_is_an_error_by_the_deadline(spoiled: Spoiled) -> None:
    store = spoiled.by(lambda _: Refusal(503, "SlowDown"), deadline_s=2)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"writing it kept failing \(\d+ attempts in .* s\)"):
        store.put("a", b"1")
    assert time.monotonic() - started < 3
    # One layer of retries: each further attempt waits about twice as long, so there are few.
    assert 3 <= len(spoiled.requests) <= 20


def test_one_failure_costs_one_request(spoiled: Spoiled) -> None:
    spoiled.plain.put("a", b"1")
    store = spoiled.by(first(1, Refusal(503, "SlowDown")))
    store.get("a")
    assert [request.method for request in spoiled.requests] == ["GET", "GET"]


def test_a_refused_object_is_no_credential_trouble_and_is_not_retried(spoiled: Spoiled) -> None:
    store = spoiled.by(lambda _: Refusal(403, "AccessDenied"))
    for attempt in (lambda: store.get("a"), lambda: store.put("a", b"1"), lambda: store.size("a")):
        with pytest.raises(AccessDenied, match=r"grant them access"):
            attempt()
    assert len(spoiled.requests) == 4  # the size takes two: HEAD cannot say why it was refused


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_refused_credentials_stop_the_job(spoiled: Spoiled, code: str) -> None:
    store = spoiled.by(lambda _: Refusal(403, code))
    for attempt in (
        lambda: store.get("a"),
        lambda: store.create("a", b""),
        lambda: store.size("a"),
    ):
        with pytest.raises(StorageError, match=r"Renew them") as caught:
            attempt()
        assert not isinstance(caught.value, AccessDenied)


def test_a_wrong_secret_stops_the_job(spoiled: Spoiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"does not accept the credentials") as caught:
        spoiled.plain.get("a")
    assert not isinstance(caught.value, AccessDenied)


def test_missing_credentials_stop_the_job(
    spoiled: Spoiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StorageError, match=r"does not accept the credentials"):
        spoiled.plain.get("a")


def test_a_missing_bucket_is_named_when_writing(spoiled: Spoiled) -> None:
    store = spoiled.by(lambda _: Refusal(404, "NoSuchBucket"))
    with pytest.raises(StorageError, match=r"Create 'test-\w+' first") as caught:
        store.create("a", b"1")
    assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(("method", "how"), [("PUT", "in one request"), ("POST", "in parts")])
def test_a_store_that_ignores_the_condition_is_found_unsafe(
    spoiled: Spoiled, method: str, how: str
) -> None:
    def decide(request: Request) -> None:
        # The object goes away just before: to the client, a condition that is not honoured.
        if request.method == method and request.is_exclusive:
            spoiled.plain.delete(f"probe/{request.path.partition('?')[0].rpartition('/')[2]}")

    with pytest.raises(UnsafeStore, match=rf"{how}, succeeded.*output\.accept_unsafe_store"):
        probe_store(spoiled.by(decide))
    assert sizes(spoiled.plain, "") == {}
