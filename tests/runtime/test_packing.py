"""Values that cross Ray arrive unchanged."""

import pickle

import numpy as np
import pytest

from tokpipe.runtime.actors import Packed
from tokpipe.types import ArchiveMember, ClipRef, DecodedClip, Failed, Piece, Rejected, WorkItem

REF = ClipRef("id", 3, 0, 1, "s3://bucket/a.mp4")


@pytest.mark.parametrize(
    "value",
    [
        REF,
        WorkItem(3, "id", "s3://b/a.tar#a.mp4", ArchiveMember("s3://b/a.tar", 5, 7), start_s=1.5),
        Rejected(REF, "decode", "empty", "no frames", error="EOFError"),
        Failed(REF, "unreachable", "no route"),
        Piece(2, 5, 33),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_pickling(value: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
    assert pickle.loads(pickle.dumps(Packed([value, value]))) == [value, value]


def test_arrays_are_not_copied_into_the_pickle() -> None:
    frames = np.arange(2 * 64 * 64 * 3, dtype=np.uint8).reshape(2, 64, 64, 3)
    clip = DecodedClip(REF, frames, np.zeros(2), 8.0, "pyav")
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(Packed([clip, None]), protocol=5, buffer_callback=buffers.append)
    assert len(data) < 2000
    back, nothing = pickle.loads(data, buffers=buffers)
    assert nothing is None
    assert np.shares_memory(back.frames, frames)
    assert back.ref == REF
