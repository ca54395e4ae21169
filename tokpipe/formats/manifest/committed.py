"""Tracks which clips of the plan are settled, in one bit per plan row."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tokpipe.errors import CorruptOutput
from tokpipe.types import ClipRef


@dataclass(slots=True)
class PartialRow:
    """A row cut into segments, of which only some are settled."""

    num_segments: int
    done: set[int] = field(default_factory=set)


class CommittedRows:
    """The set of settled clips, over a plan of ``num_rows`` rows.

    A row takes one bit: 12.5 MB for 100 million rows. Only partly settled rows take more.
    """

    def __init__(
        self,
        num_rows: int,
        bitmap: bytes | None = None,
        partial: Mapping[int, PartialRow] | None = None,
    ) -> None:
        """Start empty, or from the ``bitmap`` and ``partial`` of an earlier instance."""
        self.num_rows, num_bytes = num_rows, (num_rows + 7) // 8
        # Setting a bit of a bytearray takes half the time of setting one of an array.
        self._bits = bytearray(num_bytes) if bitmap is None else bytearray(bitmap)
        done = int.from_bytes(self._bits, "little")
        if len(self._bits) != num_bytes or done >> num_rows:
            raise ValueError(f"a bitmap of {len(self._bits)} bytes does not fit {num_rows} rows")
        self.num_done = done.bit_count()  # Rows fully settled
        self.partial = dict(partial or {})  # Partly settled rows, by row number
        for row, one in self.partial.items():
            if not row < num_rows or self._is_done(row) or not max(one.done) < one.num_segments:
                raise ValueError(f"its segments of row {row} do not fit the plan")

    @property
    def num_unopened(self) -> int:
        """Rows of which no clip is settled."""
        return self.num_unsettled - len(self.partial)

    @property
    def num_unsettled(self) -> int:
        """Rows that are not fully settled."""
        return self.num_rows - self.num_done

    @property
    def num_left(self) -> int:
        """Clips that are not settled, counting a row that was never opened as one."""
        missing = sum(row.num_segments - len(row.done) for row in self.partial.values())
        return self.num_unopened + missing

    @property
    def bitmap(self) -> bytes:
        """One bit per row, lowest bit first, set when the row is fully settled."""
        return bytes(self._bits)

    def done(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Return (stop - start,) booleans: whether each row from ``start`` on is fully settled."""
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"rows {start} to {stop} of a plan of {self.num_rows}")
        packed = np.frombuffer(self._bits, np.uint8)[start // 8 : (stop + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")
        return bits[start % 8 : start % 8 + stop - start].astype(np.bool_)

    def __contains__(self, ref: ClipRef) -> bool:
        """Whether a clip is settled. CorruptOutput if its row or number of segments is another."""
        if not 0 <= ref.row < self.num_rows or not 0 <= ref.segment < ref.num_segments:
            raise CorruptOutput(
                f"clip {ref.clip_id} is segment {ref.segment} of {ref.num_segments} of plan row "
                f"{ref.row}, in a plan of {self.num_rows} rows. The manifest and the stored plan "
                "do not belong together: tokenize to a new output prefix."
            )
        partial = self.partial.get(ref.row)
        if partial is None:
            return self._is_done(ref.row)
        if partial.num_segments != ref.num_segments:
            raise CorruptOutput(
                f"clip {ref.clip_id} is one of {ref.num_segments} segments of plan row {ref.row} "
                f"({ref.source_uri}), but {len(partial.done)} of its clips were committed when it "
                f"had {partial.num_segments}. The source changed during the job, and its clips "
                "would overlap. Restore it, or tokenize to a new output prefix."
            )
        return ref.segment in partial.done

    def grow(self, num_rows: int) -> None:
        """Append rows of which nothing is settled."""
        self.num_rows += num_rows
        self._bits.extend(bytes((self.num_rows + 7) // 8 - len(self._bits)))

    def add(self, ref: ClipRef) -> bool:
        """Settle one clip. Return False if it was settled before. Raises as ``in`` does."""
        if ref in self:
            return False
        if ref.num_segments > 1:
            partial = self.partial.setdefault(ref.row, PartialRow(ref.num_segments))
            partial.done.add(ref.segment)
            if len(partial.done) < partial.num_segments:
                return True
            del self.partial[ref.row]
        self._bits[ref.row >> 3] |= 1 << (ref.row & 7)
        self.num_done += 1
        return True

    def reopen(self, ref: ClipRef) -> bool:
        """Unsettle one clip. Return False if it was not settled. Raises as ``in`` does."""
        if ref not in self:
            return False
        if self._is_done(ref.row):
            self._bits[ref.row >> 3] &= ~(1 << (ref.row & 7))
            self.num_done -= 1
            self.partial[ref.row] = PartialRow(ref.num_segments, set(range(ref.num_segments)))
        done = self.partial[ref.row].done
        done.remove(ref.segment)
        if not done:
            del self.partial[ref.row]
        return True

    def _is_done(self, row: int) -> bool:
        return bool(self._bits[row >> 3] >> (row & 7) & 1)
