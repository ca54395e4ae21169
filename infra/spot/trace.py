"""How many spot nodes there were, and what they cost, over time: a CSV file."""

import csv
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, ValidationError
from pydantic.types import AwareDatetime

from tokpipe.config.base import Frozen
from tokpipe.errors import ConfigError
from tokpipe.runtime.dispatch.protocol import Room


class Change(NamedTuple):
    """From ``at_s`` on, there are so many nodes of a kind, at this price per node and hour."""

    at_s: float
    kind: str
    nodes: int
    price: float


class _Row(Frozen):
    """A line of the file."""

    time: NonNegativeFloat | AwareDatetime
    kind: str = Field(min_length=1)
    nodes: NonNegativeInt
    price: NonNegativeFloat
    cpus: PositiveFloat
    gpus: NonNegativeFloat = 0.0

    @property
    def room(self) -> Room:
        return Room(self.cpus, self.gpus)

    @property
    def seconds(self) -> float:
        return self.time if isinstance(self.time, float) else self.time.timestamp()


@dataclass(frozen=True)
class Trace:
    """What the market had over some time."""

    kinds: Mapping[str, Room]
    most: Mapping[str, int]  # Nodes of each kind that there ever are
    changes: tuple[Change, ...]  # By time, the first at 0
    period_s: float  # The time of the last

    @classmethod
    def read(cls, path: Path) -> "Trace":
        """Read ``time,kind,nodes,price,cpus,gpus``: a header, then a line per change. ``time`` is
        in seconds, or ISO 8601 with an offset. ConfigError: names the line."""
        kinds, rows = dict[str, Room](), list[_Row]()
        lines = path.read_text("utf-8-sig").splitlines()
        reader = csv.DictReader(lines, strict=True)
        try:
            for line in reader:
                given = {name: value for name, value in line.items() if value}
                rows.append(row := _Row.model_validate_strings(given))
                if kinds.setdefault(row.kind, row.room) != row.room:
                    raise ValueError(f"kind {row.kind} had other cpus or gpus before")
        except (ValueError, csv.Error) as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                (first, *_) = error.errors()
                problem = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
            raise ConfigError(f"{path}, line {reader.line_num}: {problem}. {_FORM}") from None
        rows.sort(key=lambda row: row.seconds)
        most = {kind: max(row.nodes for row in rows if row.kind == kind) for kind in kinds}
        if not any(most.values()):
            raise ConfigError(f"{path}: there are no nodes at any time. {_FORM}")
        start_s = rows[0].seconds
        changes = (Change(row.seconds - start_s, row.kind, row.nodes, row.price) for row in rows)
        return cls(kinds, most, tuple(changes), rows[-1].seconds - start_s)

    def since(self, offset_s: float) -> Iterator[Change]:
        """Yield each kind's state at a moment of the trace, then what changes, by seconds after
        it. After its end, the trace starts over."""
        at_first = dict[str, Change]()
        for lap in itertools.count() if self.period_s else (0,):
            for one in self.changes:
                at_s = one.at_s + lap * self.period_s - offset_s
                if at_s <= 0:
                    at_first[one.kind] = one._replace(at_s=0.0)
                    continue
                yield from at_first.values()
                at_first = {}
                yield one._replace(at_s=at_s)
        yield from at_first.values()


_FORM = (
    "A trace has the columns time (seconds, or ISO 8601 with an offset), kind (a name for nodes of "
    "one type), nodes (how many there are from then on), price (of one, per hour), cpus and gpus"
)
