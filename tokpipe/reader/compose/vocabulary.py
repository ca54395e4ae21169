"""The tokens of a model: text, the codes of one or several codebooks, and special tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tokpipe.config.base import Frozen, Uri
from tokpipe.config.explain import validate_settings
from tokpipe.errors import ConfigError

MAX_TOKENS = 2**24
TEXT, UNUSED = -1, -2  # Other uses of tokens count from 0
_PROBES = (
    "A Dog, 2 cats", " two  spaces ", "\n\ttab\r\n", "e\u0301 é", "日本語 한국어", "👩‍👧🏽 🇺🇳",
    "½ Å\u00a0\ufb01",
    "\x00\x07\x7f\u200b\ufeff\ufffd", "don't stop ! a , b", "[UNK] <unk> ▁ Ġ ##a",
)  # fmt: skip


class CodebookConfig(Frozen):
    """Which tokens the codes of one codebook are. They are consecutive."""

    size: Annotated[int, Field(ge=1, lt=MAX_TOKENS)]
    """Codes are 0 <= code < size."""
    offset: Annotated[int, Field(ge=0, lt=MAX_TOKENS)] | None = None
    """Token of code 0."""
    pattern: str | None = None
    """Name of each code in the text tokenizer, such as ``<|visual token {:06d}|>``."""
    repeat: Annotated[int, Field(ge=1, lt=2**15)] = 1
    """How many codes of a position are of this codebook, one after another."""

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.offset is None) == (self.pattern is None):
            raise ValueError("needs either offset or pattern: write where its tokens begin")
        return self

    @property
    def names(self) -> list[str]:
        """The codes' names in the text tokenizer; none if the codebook has an offset."""
        try:
            return [self.pattern.format(code) for code in range(self.size)] if self.pattern else []
        except LookupError as error:
            raise ConfigError(f"vocabulary: pattern {self.pattern!r}: write one {{}}") from error


class VocabularyConfig(Frozen):
    """A vocabulary, as a file declares it: the arguments of ``Vocabulary``."""

    codes: tuple[CodebookConfig, ...] = Field(min_length=1)
    special: Mapping[str, Annotated[int, Field(ge=0, lt=MAX_TOKENS)] | str] = {}
    pad: str | None = None
    text: Uri | None = None


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
        names = {name for book in config.codes for name in book.names}
        names |= {token for token in config.special.values() if isinstance(token, str)}
        if names and config.text is None:
            raise ConfigError(f"vocabulary: {min(names)!r} is the text of a token: set text, too")
        self.text = None if config.text is None else TextTokenizer(Path(config.text), names)
        self.special = {name: self._token(token) for name, token in config.special.items()}
        repeats = [book.repeat for book in config.codes]
        sizes = np.array([book.size for book in config.codes])
        offsets = np.array([self._offset(book) for book in config.codes])
        self.sizes: NDArray[np.int64] = sizes.repeat(repeats)  # (c,) of each code of a position
        self.offsets: NDArray[np.int64] = offsets.repeat(repeats)  # (c,) token of its code 0
        if pad is not None and pad not in self.special:
            raise ConfigError(f"vocabulary: pad={pad!r} is not among special: {[*self.special]}")
        self.pad = None if pad is None else self.special[pad]
        spans = [(token, token + 1) for token in self.special.values()]
        spans += zip(offsets.tolist(), (offsets + sizes).tolist(), strict=True)
        known = () if self.text is None else self.text.tokens.values()
        self.size: int = max([*known, *(end - 1 for _, end in spans)]) + 1
        """Number of tokens, with unused ones: rows of a model's embedding."""
        self.uses = np.full(self.size, UNUSED, np.int16)
        """(size,) what each token is: text, unused, or a number: special tokens, then codebooks."""
        self.uses[[] if self.text is None else self.text.text_tokens] = TEXT
        owners = [*self.special, *(f"codebook {number}" for number in range(len(sizes)))]
        for number, (start, end) in enumerate(spans):
            if (taken := self.uses[start:end] != UNUSED).any():
                token = start + int(taken.argmax())
                other = "text" if self.uses[token] == TEXT else owners[self.uses[token]]
                found = f"token {token} would be both {owners[number]} and {other}"
                raise ConfigError(f"vocabulary: {found}; tokens from {self.size} on are free")
            self.uses[start:end] = number

    def _token(self, name: str | int) -> int:
        if isinstance(name, int):
            return name
        assert self.text is not None
        if (token := self.text.tokens.get(name)) is None:
            raise ConfigError(f"vocabulary: {name!r} is not a token of {self.text.path}")
        return token

    def _offset(self, book: CodebookConfig) -> int:
        if book.offset is not None:
            return book.offset
        tokens = [self._token(name) for name in book.names]
        if tokens != [*range(tokens[0], tokens[0] + book.size)]:
            found = f"the tokens {book.pattern!r} are not consecutive in the tokenizer"
            raise ConfigError(f"vocabulary: {found}. Check pattern and size")
        return tokens[0]


class TextTokenizer:
    """Text as tokens, exactly: text that looks like a special token or a code stays text.

    Special tokens of the ``tokenizer.json``, and those in ``names``, are not looked for in text. A
    normalizer to NFC is left out: it changes only text that is not in NFC, and could not be undone.
    """

    def __init__(self, path: Path, names: set[str]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            lack = "reading it needs the library tokenizers: pip install 'tokpipe[text]'"
            raise ConfigError(f"{path}: {lack}") from error
        self.path = path
        try:
            whole = path.read_bytes()
            self.digest = hashlib.sha256(whole).hexdigest()
            data = json.loads(whole)
            self.tokens: dict[str, int] = Tokenizer.from_buffer(whole).get_vocab()
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
            raise ConfigError(f"{path}: is not a tokenizer.json: {found:.200}") from error
        self.text_tokens = [t for text, t in self.tokens.items() if text not in removed]
        self._not_text = {*self.tokens.values()} - {*self.text_tokens}
        for probe in (*_PROBES, *sorted(removed)[:100]):
            self.encode(probe)

    def encode(self, text: str) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """Return (n,) tokens, and the first and last character (exclusive) of each.

        ConfigError if they would not decode to the same text.
        """
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise ConfigError(f"{text!r:.99} is not text that can be written as UTF-8") from error
        back = self.decode(found.ids)
        if back != text or not self._not_text.isdisjoint(found.ids):
            changes = f"{text!r:.99} comes back as {back!r:.99}, or as special tokens"
            do = "Use one such as byte-level BPE"
            raise ConfigError(f"{self.path}: this tokenizer changes text: {changes}. {do}")
        return np.array(found.ids, np.int64), found.offsets

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text
