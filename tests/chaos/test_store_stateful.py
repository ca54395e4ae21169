"""Every kind of store against a dictionary, with answers that get lost on the way back."""

import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import S3Bucket
from tests.storage.fault_proxy import Fault, FaultProxy, Refusal, Request
from tokpipe.config.job import StoreOptions
from tokpipe.errors import NotFound
from tokpipe.storage import Store

KEYS = ["a", "b/c", "b/d/e", "b/d/f", "bc", "zz/ä b+c%20"]
keys = st.sampled_from(KEYS)
contents = st.sampled_from([b"", b"1", b"2", bytes(range(256)) * 40])
SPOILINGS = [
    *(Fault.LOSE_ANSWER, Fault.RESET, Fault.CUT_ANSWER),
    *(Refusal(503, "SlowDown"), Refusal(500, "InternalError")),
]


class Spoiler:
    """Decides for a proxy: spoils one request with the ``next`` fault."""

    def __init__(self) -> None:
        self.next: Fault | Refusal | None = None

    def decide(self, request: Request) -> Fault | Refusal | None:
        fault, self.next = self.next, None
        return fault


class StoreMachine(RuleBasedStateMachine):
    """What a store holds is what a dictionary would, whatever became of single answers."""

    def __init__(self, store: Store, spoiler: Spoiler | None) -> None:
        super().__init__()
        self.store = store
        self.spoiler = spoiler
        self.model: dict[str, bytes] = {}

    @precondition(lambda self: self.spoiler is not None)
    @rule(fault=st.sampled_from(SPOILINGS))
    def spoil_the_next_request(self, fault: Fault | Refusal) -> None:
        assert self.spoiler is not None
        self.spoiler.next = fault

    @rule(key=keys, data=contents)
    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)
        self.model[key] = data

    @rule(key=keys, data=contents)
    def create(self, key: str, data: bytes) -> None:
        """Equal bytes count as ours: this is what makes a lost answer harmless."""
        assert self.store.create(key, data) == (self.model.setdefault(key, data) == data)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=keys)
    def get(self, key: str) -> None:
        if key in self.model:
            assert self.store.get(key) == self.model[key]
        else:
            with pytest.raises(NotFound):
                self.store.get(key)

    @rule(key=keys, start=st.integers(0, 300), length=st.integers(0, 300))
    def get_range(self, key: str, start: int, length: int) -> None:
        if key in self.model:
            found = self.store.get_range(key, start, start + length)
            assert found == self.model[key][start : start + length]

    @rule(key=keys)
    def size(self, key: str) -> None:
        data = self.model.get(key)
        assert self.store.size(key) == (None if data is None else len(data))

    @invariant()
    def nothing_else_is_there(self) -> None:
        if self.spoiler is None:  # a look would use up what is to spoil the next call
            self.check_listing("")

    def teardown(self) -> None:
        self.check_listing("")
        for key, data in self.model.items():
            assert self.store.get(key) == data

    @rule(prefix=st.sampled_from(["", "b", "b/", "b/d", "b/d/", "z", "none/"]))
    def check_listing(self, prefix: str) -> None:
        wanted = {key: len(data) for key, data in self.model.items() if key.startswith(prefix)}
        listed = {found.key: found.size_bytes for found in self.store.list(prefix)}
        assert listed == wanted


def run_machine(
    prefix: str, options: StoreOptions, spoiler: Spoiler | None, *, max_examples: int, steps: int
) -> None:
    """Check many histories, each in a store of its own below ``prefix``."""

    def start() -> StoreMachine:
        if spoiler is not None:
            spoiler.next = None
        return StoreMachine(Store(f"{prefix}/{uuid.uuid4().hex}", options), spoiler)

    run_state_machine_as_test(
        start,  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_local_store_is_a_dictionary(kind: str, tmp_path: Path) -> None:
    prefix = f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(tmp_path)
    run_machine(prefix, StoreOptions(), None, max_examples=40, steps=30)


@pytest.mark.s3
def test_s3_is_a_dictionary_even_when_answers_are_lost(s3_bucket: S3Bucket) -> None:
    spoiler = Spoiler()
    with FaultProxy(s3_bucket.server.endpoint, spoiler.decide) as proxy:
        options = StoreOptions(options={"s3": {"endpoint_url": proxy.endpoint}}, deadline_s=300)
        run_machine(s3_bucket.uri, options, spoiler, max_examples=12, steps=25)
