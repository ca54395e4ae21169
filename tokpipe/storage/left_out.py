"""Counts the files that a source finds but does not take."""

import re
from dataclasses import dataclass, field

from tokpipe.telemetry.human import counted

NO_MATCH = "unmatched pattern"  # One of those that braces stand for
UNREADABLE = "unreadable folder"
LOOP = "looping link"
OVERWRITTEN = "overwritten by a later member"
OTHER_PARTS = "other parts' row"  # Of a job that takes one part of the rows
_NO_FILES = (NO_MATCH, UNREADABLE, LOOP, OTHER_PARTS)

_HIDDEN = re.compile(r"(?:^|/)(?:\.|(?:\$RECYCLE\.BIN|#recycle|@Recycle)/)")
"""Also macOS's ``._IMG_0001.MOV``, which holds attributes, and what Windows and NAS deleted."""
_MAX_KINDS, _SHOWN_KINDS, _NAMES = 100, 8, 3


def kind_of(name: str) -> str:
    """Return the kind that a file is counted under: ``.mp4`` for any case of this extension."""
    if _HIDDEN.search(name):
        return "hidden"
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    if not dot:
        return "without an extension"
    return f".{extension.lower()}" if len(extension) < 13 and extension.isalnum() else "others"


@dataclass
class LeftOut:
    """How many files were left out, by kind, with a few names of each. Memory is bounded."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.counts.keys() != self.names.keys():
            raise ValueError("what was left out has names or a number, but not both")

    def add(self, kind: str, name: str) -> None:
        known = self.names.get(kind, [])
        if len(known) == _NAMES and name > known[-1]:  # the usual case, fast
            self.counts[kind] += 1
            return
        # Names may hold line breaks, escape sequences and bytes that are not UTF-8.
        self._add(kind, 1, [repr(name)[1:-1]])

    def update(self, other: "LeftOut") -> None:
        for kind, number in other.counts.items():
            self._add(kind, number, other.names[kind])

    def _add(self, kind: str, number: int, names: list[str]) -> None:
        if kind not in self.counts and len(self.counts) >= _MAX_KINDS:
            kind = "others"
        self.counts[kind] = self.counts.get(kind, 0) + number
        self.names[kind] = sorted({*self.names.get(kind, ()), *names})[:_NAMES]

    @property
    def files(self) -> dict[str, int]:
        """Number of files by kind, the most frequent first."""
        by_number = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {kind: n for kind, n in by_number if kind not in _NO_FILES}

    @property
    def text(self) -> str:
        """Return ``3 files: 2 .jpg (a.jpg, b.jpg), 1 hidden (.x)``; empty if there are none."""
        files, texts = self.files, []
        if number := sum(files.values()):
            shown = [self._kind_text(kind) for kind in [*files][:_SHOWN_KINDS]]
            if others := [*files.values()][_SHOWN_KINDS:]:
                shown.append(f"{sum(others):,} of {len(others)} other kinds")
            texts.append(f"{counted(number, 'file')}: {', '.join(shown)}")
        texts += [self._kind_text(kind) for kind in _NO_FILES if kind in self.counts]
        return "; ".join(texts)

    def _kind_text(self, kind: str) -> str:
        number, names = self.counts[kind], self.names[kind]
        found = counted(number, kind) if kind in _NO_FILES else f"{number:,} {kind}"
        more = ["..."] if number > len(names) else []
        return f"{found} ({', '.join([*names, *more])})" if names else found
