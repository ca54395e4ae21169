"""The manifest agrees with a dictionary over commits, crashes, stale drivers and damage."""

import contextlib
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.formats.formats_helpers import Crash, DictStore, clip_ref, encoded_clip
from tokpipe.formats.manifest import (
    ManifestEntry,
    ManifestState,
    Reopened,
    append,
    iter_entries,
    iter_rejected,
    load_state,
    write_checkpoint,
)
from tokpipe.formats.shard import receipt_of
from tokpipe.types import ClipRef, EncodedClip, Rejected

NUM_ROWS = 40
INTERVAL = 3
SEGMENTS = [1 + (row % 4 == 3) * (row % 3) for row in range(NUM_ROWS)]
"""Most rows are one clip; some are cut into 2 or 3."""
CLIPS = [(row, segment) for row, num in enumerate(SEGMENTS) for segment in range(num)]

Clip = tuple[int, int]


class Driver:
    """Commits as a driver does: skips settled clips, appends, writes checkpoints."""

    def __init__(self, store: DictStore, name: str, *, links: bool) -> None:
        self.store = store
        self.name = name
        self.links = links
        self.state = load_state(store, NUM_ROWS, interval=INTERVAL)

    def entry(self, tokenized: set[Clip], rejected: set[Clip]) -> ManifestEntry:
        clips = [encoded(clip) for clip in sorted(tokenized) if self._is_new(clip)]
        seq = self.state.next_seq
        shards = (receipt_of(f"p-{seq}-{self.name}", clips, b"", b""),) if clips else ()
        rejections = (
            Rejected(ref_of(clip), "decode", f"reason{clip[1]}", "message")
            for clip in sorted(rejected)
            if self._is_new(clip)
        )
        entry = ManifestEntry(seq, self.name, "now", shards, tuple(rejections))
        return self.linked(entry)

    def linked(self, entry: ManifestEntry) -> ManifestEntry:
        """Continue the log; drivers of earlier versions did not say which entry they continue."""
        return replace(entry, previous=self.state.tail.sha256) if self.links else entry

    def commit(self, entry: ManifestEntry) -> bool:
        if (appended := append(self.store, entry)) is None:
            return False
        self.state.apply(appended)
        if self.state.next_seq % INTERVAL == 0:
            write_checkpoint(self.store, self.state)
        return True

    def _is_new(self, clip: Clip) -> bool:
        return ref_of(clip) not in self.state.committed


def ref_of(clip: Clip) -> ClipRef:
    row, segment = clip
    return clip_ref(row, segment, SEGMENTS[row])


def encoded(clip: Clip) -> EncodedClip:
    return replace(encoded_clip(clip[0], frames=(1,), grid=(1, 1)), ref=ref_of(clip))


work = st.sets(st.sampled_from(CLIPS), max_size=8)
crashes: st.SearchStrategy[Any] = st.sampled_from(["before", "after"])


class ManifestMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = DictStore()
        self.num_drivers = 0
        self.tokenized: dict[Clip, str] = {}
        self.rejected: dict[Clip, str] = {}
        self.zombie: Driver | None = None
        self.start()

    def start(self) -> None:
        self.num_drivers += 1
        # The first three are of an earlier version.
        name, links = f"driver-{self.num_drivers}", self.num_drivers > 3
        self.driver = Driver(self.store, name, links=links)

    def remember(self, entry: ManifestEntry) -> None:
        for receipt in entry.shards:
            for ref in receipt.clips:
                self.tokenized[ref.row, ref.segment] = receipt.shard
        for rejection in entry.rejected:
            self.rejected[rejection.ref.row, rejection.ref.segment] = rejection.reason

    @rule(done=work, rejected=work)
    def commit(self, done: set[Clip], rejected: set[Clip]) -> None:
        entry = self.driver.entry(done, rejected - done)
        assert self.driver.commit(entry)
        self.remember(entry)

    @rule(done=work, rejected=work, write=st.integers(0, 2), crash=crashes)
    def crash_and_resume(
        self, done: set[Clip], rejected: set[Clip], write: int, crash: Literal["before", "after"]
    ) -> None:
        """A commit writes the entry, then both halves of a checkpoint if one is due."""
        entry = self.driver.entry(done, rejected - done)
        self.store.writes_to_crash, self.store.crash = write, crash
        with contextlib.suppress(Crash):
            assert self.driver.commit(entry)
        self.store.writes_to_crash = None
        if write > 0 or crash == "after":
            self.remember(entry)
        self.start()

    @precondition(lambda self: self.rejected)
    @rule(data=st.data())
    def withdraw_a_rejection(self, data: st.DataObject) -> None:
        clip = data.draw(st.sampled_from(sorted(self.rejected)))
        reopened = (Reopened(ref_of(clip), self.rejected.pop(clip)),)
        seq = self.driver.state.next_seq
        entry = ManifestEntry(seq, self.driver.name, "now", reopened=reopened)
        assert self.driver.commit(self.driver.linked(entry))

    @rule()
    def freeze_and_replace(self) -> None:
        self.zombie = self.driver
        self.start()

    @precondition(lambda self: self.zombie is not None)
    @rule(done=work)
    def thaw(self, done: set[Clip]) -> None:
        """The old driver continues: only one of the two can take the next number."""
        assert self.zombie is not None
        stale = self.zombie.state.next_seq < self.driver.state.next_seq
        entry = self.zombie.entry(done, set())
        won = self.zombie.commit(entry)
        assert won == (not stale)
        if won:
            self.remember(entry)
            # The other driver is now stale. Its next commit fails, and it restarts.
            assert not self.driver.commit(self.driver.entry(set(), set()))
            self.start()
        self.zombie = None

    @rule(data=st.data(), how=st.sampled_from(["delete", "damage"]))
    def lose_a_checkpoint(self, data: st.DataObject, how: str) -> None:
        if keys := sorted(key for key in self.store.objects if "checkpoint" in key):
            key = data.draw(st.sampled_from(keys))
            whole = self.store.objects.pop(key)
            if how == "damage":
                self.store.objects[key] = whole[:-7]

    @invariant()
    def the_manifest_is_the_dictionary(self) -> None:
        # With checkpoints, without any, and in the running driver.
        self.check(load_state(self.store, NUM_ROWS, interval=INTERVAL))
        self.check(load_state(self.store, NUM_ROWS, interval=10**9))
        self.check(self.driver.state)
        found = {(r.ref.row, r.ref.segment): r.reason for r in iter_rejected(self.store)}
        assert found == self.rejected
        settled: list[Clip] = []
        for entry in iter_entries(self.store):
            for one in entry.reopened:
                settled.remove((one.ref.row, one.ref.segment))
            settled.extend((ref.row, ref.segment) for ref in entry.refs())
        assert sorted(settled) == sorted([*self.tokenized, *self.rejected])

    def check(self, state: ManifestState) -> None:
        settled = self.tokenized.keys() | self.rejected.keys()
        for clip in CLIPS:
            assert (ref_of(clip) in state.committed) == (clip in settled)
        whole = [all((row, s) in settled for s in range(num)) for row, num in enumerate(SEGMENTS)]
        assert state.committed.done(0, NUM_ROWS).tolist() == whole
        assert state.totals.num_clips == len(self.tokenized)
        assert state.totals.rejected == Counter(self.rejected.values())
        assert state.shards["shard"].to_pylist() == list(dict.fromkeys(self.tokenized.values()))


TestManifest = ManifestMachine.TestCase
TestManifest.settings = settings(max_examples=25, stateful_step_count=25)
