"""The tokens of a model: text, the codes of one or several codebooks, and special tokens."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from tokpipe.config.base import Frozen, Uri
from tokpipe.config.explain import validate_settings
from tokpipe.errors import ConfigError

_PROBES = (
    "A Dog, 2 cats", " two  spaces ", "\n\ttab\r\n", "e\u0301 é", "日本語 한국어", "👩‍👧🏽 🇺🇳",
    "½ Å\u00a0\ufb01",
    "\x00\x07\x7f\u200b\ufeff\ufffd", "don't stop ! a , b", "[UNK] <unk> ▁ Ġ ##a",
)  # fmt: skip


class CodebookConfig(Frozen):
    """Which tokens the codes of one codebook are. They are consecutive."""

    size: PositiveInt
    """Codes are 0 <= code < size."""
    offset: NonNegativeInt | None = None
    """Token of code 0."""
    pattern: str | None = None
    """Name of each code in the text tokenizer, such as ``<|visual token {:06d}|>``."""

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.offset is None) == (self.pattern is None):
            raise ValueError("needs either offset or pattern: write where its tokens begin")
        return self

    def name(self, code: int) -> str:
        try:
            return (self.pattern or "").format(code)
        except (LookupError, ValueError) as error:
            raise ConfigError(f"pattern {self.pattern!r}: {error}; write one {{:06d}}") from error


class VocabularyConfig(Frozen):
    """A vocabulary, as a file declares it."""

    codes: tuple[CodebookConfig, ...] = Field(min_length=1)
    """The codebooks, in the order of the last axis of codes (t, h, w, c)."""
    special: Mapping[str, NonNegativeInt | str] = Field(default_factory=dict)
    """Name in templates -> token, or its text in the text tokenizer."""
    pad: str | None = None
    """Name of the special token that fills sequences up."""
    text: Uri | None = None
    """Path of a ``tokenizer.json``."""


class Vocabulary:
    """Tokens 0 <= token < ``size``, each of them text, a code, special or unused.

    Args:
        codes: one mapping for each codebook: its ``size``, and either ``offset``, the token of code
            0, or ``pattern``, the name of each code in the text tokenizer.
        special: name in templates -> token, or its text in the text tokenizer.
        pad: name of the special token that fills sequences up.
        text: path of a ``tokenizer.json``, for the library ``tokenizers``.

    Raises:
        ConfigError: tokens overlap or do not exist, or the tokenizer changes text.
    """

    def __init__(
        self,
        codes: Sequence[Mapping[str, Any]],
        *,
        special: Mapping[str, int | str] | None = None,
        pad: str | None = None,
        text: str | Path | None = None,
    ) -> None:
        data = {"codes": list(codes), "special": dict(special or {}), "pad": pad, "text": text}
        config: VocabularyConfig = validate_settings(VocabularyConfig, data, name="vocabulary")
        names = {token for token in config.special.values() if isinstance(token, str)}
        for book in config.codes:
            names |= {book.name(code) for code in range(book.size if book.pattern else 0)}
        if names and config.text is None:
            raise ConfigError(f"vocabulary: {min(names)!r} is the text of a token: set text, too")
        self.text = None if config.text is None else TextTokenizer(Path(config.text), names)
        self.special = {
            name: self._token(token) if isinstance(token, str) else token
            for name, token in config.special.items()
        }
        self.sizes: NDArray[np.int64] = np.array([book.size for book in config.codes])
        """(codebooks,) codes of each codebook."""
        self.offsets: NDArray[np.int64] = np.array([self._offset(book) for book in config.codes])
        """(codebooks,) token of each codebook's code 0."""
        if pad is not None and pad not in self.special:
            raise ConfigError(f"vocabulary: pad={pad!r} is not among special: {[*self.special]}")
        self.pad = None if pad is None else self.special[pad]
        self.size = self._checked_size()
        """Number of tokens, with unused ones: rows of a model's embedding."""

    def _token(self, name: str) -> int:
        assert self.text is not None
        if (token := self.text.tokens.get(name)) is None:
            raise ConfigError(f"vocabulary: {name!r} is not a token of {self.text.path}")
        return token

    def _offset(self, book: CodebookConfig) -> int:
        if book.offset is not None:
            return book.offset
        tokens = [self._token(book.name(code)) for code in range(book.size)]
        for code, (one, other) in enumerate(pairwise(tokens)):
            if other != one + 1:
                raise ConfigError(
                    f"vocabulary: {book.name(code)} is token {one}, but {book.name(code + 1)} is "
                    f"token {other}: codes have to be consecutive tokens"
                )
        return tokens[0]

    def _checked_size(self) -> int:
        spans = [(token, token + 1, name) for name, token in self.special.items()]
        for number, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            spans.append((int(offset), int(offset + size), f"codebook {number}"))
        spans.sort()
        for (first, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise ConfigError(
                    f"vocabulary: token {start} would be both {name} and {other}. Give {other} "
                    f"other tokens: {name} has {first} to {end - 1}"
                )
        ends = [end for _, end, _ in spans]
        if self.text is not None:
            is_text = self.text.is_text
            for start, end, name in spans:
                if is_text[start:end].any():
                    token = start + int(is_text[start:end].argmax())
                    raise ConfigError(
                        f"vocabulary: token {token} would be both {name} and the text "
                        f"{self.text.decode([token])!r}; tokens from {len(is_text)} on are free"
                    )
            ends.append(len(is_text))
        return max(ends)


class TextTokenizer:
    """Text as tokens, exactly: text that looks like a special token or a code stays text.

    Special tokens of the ``tokenizer.json``, and those in ``names``, are not looked for in text. A
    normalizer to NFC is left out: it changes only text that is not in NFC, and could not be undone.
    """

    def __init__(self, path: Path, names: set[str]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigError(
                f"{path}: reading it needs the library tokenizers: pip install 'tokpipe[text]'"
            ) from error
        self.path = path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            whole = Tokenizer.from_str(json.dumps(data))
            self.tokens: dict[str, int] = whole.get_vocab()
            """Token of each text, also of special ones and codes."""
            added = data.get("added_tokens") or []
            removed = names | {one["content"] for one in added if one["special"]}
            data["added_tokens"] = [one for one in added if one["content"] not in removed]
            if isinstance(vocab := data["model"].get("vocab"), dict):
                data["model"]["vocab"] = {k: v for k, v in vocab.items() if k not in removed}
            data.update(post_processor=None, truncation=None, padding=None)
            if (data.get("normalizer") or {}).get("type") == "NFC":
                data["normalizer"] = None
            self._tokenizer = Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # The library raises nothing narrower
            found = " ".join(str(error).split())
            raise ConfigError(
                f"{path}: cannot be read as a tokenizer.json: {found:.200}"
            ) from error
        kept = [token for text, token in self.tokens.items() if text not in removed]
        self.is_text = np.zeros(max(self.tokens.values(), default=-1) + 1, bool)
        """(tokens,) whether each token is text."""
        self.is_text[kept] = True
        for probe in (*_PROBES, *sorted(removed)[:100]):
            self.encode(probe)

    def encode(self, text: str) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """Return (n,) tokens, and the first and last character (exclusive) of each.

        Raises:
            ConfigError: the tokens would not decode to the same text.
        """
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise ConfigError(f"{text!r:.99} is not text that can be written as UTF-8") from error
        if not self.is_text[found.ids].all() or (back := self.decode(found.ids)) != text:
            back = "special tokens" if not self.is_text[found.ids].all() else repr(back)
            raise ConfigError(
                f"{self.path}: this tokenizer changes text: {text!r:.99} comes back as {back:.99}, "
                "so captions could not be read back from sequences. Use a tokenizer without "
                "normalizer and unknown tokens, such as byte-level BPE"
            )
        return np.array(found.ids, np.int64), found.offsets

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text
