"""Answers of a real S3 server that are lost, cut, late or wrong, by a proxy in front of it."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import S3Bucket
from tests.storage.fault_proxy import Decide, Fault, FaultProxy, Refusal, Request
from tests.storage.listed import sizes
from tokpipe.config.job import StoreOptions
from tokpipe.errors import AccessDenied, NotFound, StorageError, UnsafeStore
from tokpipe.storage import Store, probe_store
from tokpipe.storage.client import client_of

pytestmark = pytest.mark.s3


class Disturbed:
    """A store behind the proxy, and the same store without it."""

    def __init__(self, bucket: S3Bucket, proxy: FaultProxy) -> None:
        self._uri = f"{bucket.uri}/{uuid.uuid4().hex}"
        self.proxy = proxy
        self.plain: Store = Store(self._uri, StoreOptions(deadline_s=20))

    def by(self, decide: Decide, deadline_s: float = 20.0) -> Store:
        self.proxy.disturb(decide)
        return Store(self._uri, self.proxy.options(deadline_s))


@pytest.fixture
def disturbed(s3_bucket: S3Bucket, proxy: FaultProxy) -> Disturbed:
    return Disturbed(s3_bucket, proxy)


def first(num: int, fault: Fault | Refusal) -> Decide:
    return lambda request: fault if request.number < num else None


def test_a_create_without_an_answer_succeeds_unless_the_key_is_taken(disturbed: Disturbed) -> None:
    assert disturbed.by(first(1, Fault.LOSE_ANSWER)).create("manifest/0", b"mine")
    assert disturbed.plain.get("manifest/0") == b"mine"
    # Written, rejected when written again, read back.
    assert [request.method for request in disturbed.proxy.requests] == ["PUT", "PUT", "GET"]
    assert not disturbed.by(first(1, Fault.LOSE_ANSWER)).create("manifest/0", b"other")
    assert disturbed.plain.get("manifest/0") == b"mine"


def test_a_multipart_create_survives_a_lost_last_answer(disturbed: Disturbed) -> None:
    lost: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if request.method == "POST" and request.is_exclusive and not lost:
            lost.append(request)
            return Fault.LOSE_ANSWER
        return None

    data = bytes(range(256)) * 2**16
    assert disturbed.by(decide).create("large", data)
    assert disturbed.plain.get("large") == data
    assert lost


def test_two_writers_on_a_lossy_connection_agree_on_the_winner(disturbed: Disturbed) -> None:
    # Every third answer is lost; trusting every rejection would soon produce wrong beliefs.
    store = disturbed.by(lambda request: Fault.LOSE_ANSWER if request.number % 3 == 0 else None)
    beliefs: dict[tuple[int, int], bool] = {}

    def write(writer: int) -> None:
        for key in range(8):
            beliefs[key, writer] = store.create(f"manifest/{key}", f"attempt {writer}".encode())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(2)))
    for key in range(8):
        winner = int(disturbed.plain.get(f"manifest/{key}").removeprefix(b"attempt "))
        assert [beliefs[key, writer] for writer in range(2)] == [winner == 0, winner == 1]


TRANSIENT = [
    *(Refusal(503, "SlowDown"), Refusal(500, "InternalError"), Refusal(429, "TooManyRequests")),
    *(Refusal(409, "ConditionalRequestConflict"), Refusal(400, "RequestTimeout"), Fault.RESET),
]


@pytest.mark.parametrize("fault", TRANSIENT, ids=str)
def test_transient_errors_are_retried(disturbed: Disturbed, fault: Fault | Refusal) -> None:
    assert disturbed.by(first(1, fault)).create("a", b"1")
    assert disturbed.by(first(1, fault)).get("a") == b"1"
    assert [request.method for request in disturbed.proxy.requests] == ["GET", "GET"]
    assert disturbed.by(first(1, fault)).size("a") == 1
    assert sizes(disturbed.by(first(1, fault)), "") == {"a": 1}
    disturbed.by(first(1, fault)).delete("a")
    assert disturbed.plain.size("a") is None


def test_an_answer_that_is_cut_short_is_requested_again(disturbed: Disturbed) -> None:
    disturbed.plain.put("a", b"0123456789")
    assert disturbed.by(first(1, Fault.CUT_ANSWER)).get("a") == b"0123456789"
    assert disturbed.by(first(1, Fault.CUT_ANSWER)).get_range("a", 2, 8) == b"234567"


def test_an_empty_answer_is_neither_an_object_nor_an_empty_folder(disturbed: Disturbed) -> None:
    disturbed.plain.put("a", b"0123456789")
    assert sizes(disturbed.by(first(1, Fault.EMPTY)), "") == {"a": 10}
    assert disturbed.by(first(1, Fault.EMPTY)).get("a") == b"0123456789"
    client = client_of(disturbed.plain.uri, disturbed.proxy.options())
    version = client.info(disturbed.plain.uri_of("a"))
    disturbed.by(first(1, Fault.EMPTY))
    assert client.read_version(disturbed.plain.uri_of("a"), 2, 8, version) == b"234567"


def test_a_request_that_hangs_is_cancelled_and_retried(disturbed: Disturbed) -> None:
    disturbed.plain.put("a", b"1")
    assert disturbed.by(first(1, Fault.HANG), deadline_s=4).get("a") == b"1"
    assert len(disturbed.proxy.requests) == 2


def test_a_store_that_keeps_failing_is_an_error(disturbed: Disturbed) -> None:
    store = disturbed.by(lambda _: Refusal(503, "SlowDown"), deadline_s=2)
    with pytest.raises(StorageError, match=r"writing it kept failing \(\d+ attempts in .* s\)"):
        store.put("a", b"1")
    # One layer of retries: each attempt waits about twice as long as the last, so there are few.
    assert 3 <= len(disturbed.proxy.requests) <= 20


def test_a_denied_object_is_reported_without_retries(disturbed: Disturbed) -> None:
    store = disturbed.by(lambda _: Refusal(403, "AccessDenied"))
    for attempt in (store.get, lambda key: store.put(key, b"1"), store.size):
        with pytest.raises(AccessDenied, match=r"grant them access"):
            attempt("a")
    assert len(disturbed.proxy.requests) == 4  # size takes two: HEAD cannot say why it was denied


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_rejected_credentials_stop_the_job(disturbed: Disturbed, code: str) -> None:
    store = disturbed.by(lambda _: Refusal(403, code))
    for attempt in (store.get, lambda key: store.create(key, b""), store.size):
        with pytest.raises(StorageError, match=r"Renew them") as caught:
            attempt("a")
        assert not isinstance(caught.value, AccessDenied)


@pytest.mark.parametrize("secret", ["wrong", None])
def test_a_wrong_or_missing_secret_stops_the_job(
    disturbed: Disturbed, secret: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if secret is None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with pytest.raises(StorageError, match=r"does not accept the credentials") as caught:
        disturbed.plain.get("a")
    assert not isinstance(caught.value, AccessDenied)


def test_a_missing_bucket_is_named_when_writing(disturbed: Disturbed) -> None:
    store = disturbed.by(lambda _: Refusal(404, "NoSuchBucket"))
    with pytest.raises(StorageError, match=r"Create 'test-\w+' first") as caught:
        store.create("a", b"1")
    assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize(("method", "how"), [("PUT", "in one request"), ("POST", "in parts")])
def test_a_store_that_ignores_the_condition_is_unsafe(
    disturbed: Disturbed, method: str, how: str
) -> None:
    def decide(request: Request) -> None:
        # The object is deleted just before, so it looks as if the condition was ignored.
        if request.method == method and request.is_exclusive:
            disturbed.plain.delete(f"probe/{request.path.partition('?')[0].rpartition('/')[2]}")

    with pytest.raises(UnsafeStore, match=rf"{how}, succeeded.*output\.accept_unsafe_store"):
        probe_store(disturbed.by(decide))
    assert sizes(disturbed.plain, "") == {}
