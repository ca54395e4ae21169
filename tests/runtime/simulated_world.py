"""What a seed decides about a simulated job: its dataset, and what goes wrong."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tokpipe.types import STAGES, ClipRef, Receipt, Stage, WorkItem

Key = tuple[int, int]
"""(plan row, segment)."""
Place = tuple[Stage, int, int, int]
"""(stage, plan row, segment, piece)."""
Flaw = Literal["bad", "kills", "fails"]
"""What happens at a place every time: a clip is rejected, its worker dies, or the stage fails."""
FATES: dict[Flaw | None, str] = {None: "codes", "bad": "bad", "kills": "lost", "fails": "lost"}


@dataclass
class World:
    """The rows of a plan, and everything that is wrong with their clips."""

    num_segments: list[int]
    num_pieces: list[int]
    """More than 1 for a streamed clip."""
    grids: list[tuple[int, int]]
    sizes: list[int]
    """Which of the sizes of frames."""
    num_frames: list[int]
    flaws: dict[Place, Flaw]

    def flaw(self, stage: Stage, item: WorkItem) -> Flaw | None:
        return self.flaws.get((stage, item.row, item.segment, item.piece))

    def expected(self) -> dict[Key, str]:
        """The fate of every clip in an undisturbed job."""
        fates: dict[Key, str] = {}
        for row, num_pieces in enumerate(self.num_pieces):
            # Until the first clip is decoded, nobody knows how many segments the source has.
            is_known = ("decode", row, 0, 0) not in self.flaws
            for segment in range(self.num_segments[row] if is_known else 1):
                places = ((s, row, segment, piece) for s in STAGES for piece in range(num_pieces))
                first = next((self.flaws[place] for place in places if place in self.flaws), None)
                fates[row, segment] = FATES[first]
        return fates


def draw_world(rng: random.Random) -> World:
    rows = range(rng.randint(1, 14))
    streamed = rng.choice([0.0, 0.0, 0.1, 0.3])
    kills = 0.03 if rng.random() < 0.4 else 0.0
    fails = 0.02 if rng.random() < 0.3 else 0.0
    num_pieces = [rng.randint(2, 6) if rng.random() < streamed else 1 for _ in rows]
    num_segments = [
        rng.randint(2, 9) if pieces == 1 and rng.random() < 0.15 else 1 for pieces in num_pieces
    ]
    flaws: dict[Place, Flaw] = {}
    for row, pieces in enumerate(num_pieces):
        if pieces > 1 and rng.random() < 0.1:
            place = (rng.choice(STAGES[:2]), row, 0, rng.randrange(pieces))
            flaws[place] = "kills" if rng.random() < 0.3 else "bad"
        for segment in range(num_segments[row] if pieces == 1 else 0):
            for stage, bad in zip(STAGES, (0.0 if segment else 0.1, 0.05), strict=False):
                kinds: list[Flaw | None] = ["bad", "kills", "fails", None]
                (flaw,) = rng.choices(kinds, [bad, kills, fails, 1.0])
                if flaw is not None:
                    flaws[stage, row, segment, 0] = flaw
    grids = [rng.choice([(4, 4), (2, 8)]) for _ in rows]
    sizes, num_frames = [rng.randrange(2) for _ in rows], [rng.choice([5, 9, 14]) for _ in rows]
    return World(num_segments, num_pieces, grids, sizes, num_frames, flaws)


Kind = Literal[
    "actor lost", "node lost", "zombie", "fault", "storage", "node", "drained", "clip kills", "none"
]


@dataclass
class Trouble:
    """What a seed does to the job, as chances."""

    leases: dict[Kind, float] = field(default_factory=dict)
    """What goes wrong while an actor works on a lease."""
    gives_up: float = 0.0
    """A stage fails at one clip of a lease and continues with the others."""
    driver_dies: float = 0.0
    stop: float = 0.0
    store_fails: float = 0.0
    retry: float = 0.0
    """A driver withdraws all rejections first."""


def draw_trouble(rng: random.Random) -> Trouble:
    if rng.random() < 0.1:
        return Trouble()
    level = rng.choice([0.01, 0.05, 0.15])
    often: list[Kind] = ["actor lost", "node lost", "drained", "zombie"]
    rare: list[Kind] = ["fault", "storage", "node"]

    def maybe(value: float) -> float:
        return value if rng.random() < 0.5 else 0.0

    return Trouble(
        {kind: maybe(level / (3 if kind in rare else 1)) for kind in often + rare},
        gives_up=maybe(level / 2),
        driver_dies=maybe(0.7),
        stop=maybe(0.3),
        store_fails=maybe(0.1),
        retry=maybe(0.3),
    )


class Scenario:
    """What a seed decides, and what has become of it so far."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.world = draw_world(rng)
        self.trouble = draw_trouble(rng)
        self.reused = rng.choice([0.0, 0.5, 0.9])
        """Share of clips that decoders find in another output."""
        self.now = 0.0
        self.seen: Counter[str] = Counter()
        """What went wrong, by kind."""
        self.blamed: Counter[Key] = Counter()
        """How often a clip's worker was lost or failed while it held only that clip."""


def item_of(row: int) -> WorkItem:
    return WorkItem(row=row, row_id=f"id{row}", source_uri=f"mem://{row}")


def ref_of(item: WorkItem) -> ClipRef:
    total = item.num_segments or 1
    clip_id = item.row_id if total == 1 else f"{item.row_id}.{item.segment}"
    return ClipRef(clip_id, item.row, item.segment, total, item.source_uri)


def receipt_of(
    refs: tuple[ClipRef, ...], name: str = "a", grid: tuple[int, int] = (4, 4)
) -> Receipt:
    return Receipt(
        shard=f"shards/{name}.parquet",
        size_bytes=100,
        sha256="0" * 64,
        num_rows=len(refs),
        num_codes=100 * len(refs),
        num_frames=5 * len(refs),
        grid=grid,
        side_table=f"clips/{name}.parquet",
        side_table_sha256="0" * 64,
        side_table_size_bytes=10,
        clips=refs,
    )


def codes_after(before: int, row: int, piece: int) -> int:
    """The codes of a piece, and the state after it: different for every different past."""
    return hash((before, row, piece))


def codes_of_stream(row: int, num_pieces: int) -> list[int]:
    """The right codes: every piece encoded in order, each from the state after the previous one."""
    pieces = range(num_pieces)
    chain = itertools.accumulate(pieces, lambda now, k: codes_after(now, row, k), initial=0)
    return list(chain)[1:]
