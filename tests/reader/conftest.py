"""Two outputs on disk, alone as a stream and together as a mix."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.reader.reader_helpers import write_clips
from tokpipe.config.job import StoreOptions
from tokpipe.reader import ClipMix, ClipStream, CodeCache, open_output
from tokpipe.storage import Store

LARGE, SMALL = (9, 4, 10, 7), (3, 3)
FIRST_SMALL = 500
"""Plan rows of the small output begin here."""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[CodeCache]:
    """Caches of an output with 30 clips, and of one with 6 clips three times as long."""
    folder = tmp_path_factory.mktemp("outputs")
    outputs = (("large", LARGE, 0), ("small", SMALL, FIRST_SMALL))
    for name, sizes, first_row in outputs:
        store = Store(str(folder / name), StoreOptions())
        write_clips(store, sizes, lambda row: 3 if row >= FIRST_SMALL else 1, first_row=first_row)
    return [
        CodeCache(open_output(str(folder / name)), folder / "cache", allow_partial=name == "small")
        for name, _, _ in outputs
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CodeCache:
    """Cache of an output whose clips have one to three chunks."""
    folder = tmp_path_factory.mktemp("output")
    store = Store(str(folder / "out"), StoreOptions())
    write_clips(store, (5, 1, 7, 4, 6), lambda row: 1 + row % 3)
    return CodeCache(open_output(str(folder / "out")), folder / "cache")


@pytest.fixture(scope="module", params=["stream", "mix"])
def open_stream(
    request: pytest.FixtureRequest, cache: CodeCache, caches: list[CodeCache]
) -> Callable[..., ClipMix]:
    """Opens a stream of one output or a mix of two. Takes seed, rank and world_size."""

    def stream(*, seed: int = 1, **settings: Any) -> ClipMix:
        if request.param == "stream":
            return ClipStream(cache, seed=seed, **settings)
        return ClipMix(caches, [0.25, 0.75], epoch_clips=50, seed=seed, **settings)

    return stream
