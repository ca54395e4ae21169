"""Finds clips by what people remember of them."""

import difflib
import fnmatch
import unicodedata
from collections.abc import Callable, Iterable

_COMPARED = 20_000
"""Names that a misspelling is compared with, at about 10 microseconds each."""


def source_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test for source URIs that contain ``pattern``, or match it as a glob.

    A glob matches a whole URI, or its end after a ``/`` or ``#``; its ``*`` matches ``/`` too.
    Upper and lower case are the same, and so are composed and decomposed letters.
    """
    pattern = _folded(pattern)
    is_glob = any(one in pattern for one in "*?[")

    def matches(uri: str) -> bool:
        uri = _folded(uri)
        return pattern in uri or (is_glob and fnmatch.fnmatchcase(f"/{uri}", f"*[/#]{pattern}"))

    return matches


def near_names(wanted: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that contain ``wanted``, or else resemble it."""
    wanted = _folded(wanted.strip("*?"))
    others: dict[str, str] = {}
    containing: dict[str, None] = {}
    for name in names:
        folded = _folded(name)
        if wanted in folded:
            containing[name] = None
            if len(containing) == 3:
                break
        elif len(others) < _COMPARED:
            others.setdefault(folded, name)
    near = difflib.get_close_matches(wanted, others, n=3, cutoff=0.6)
    return list(containing) or [others[folded] for folded in near]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
