"""Clips, text and metadata as sequences of tokens, by a declared template."""

from tokpipe.reader.compose.template import Document, Parsed, Template
from tokpipe.reader.compose.vocabulary import Vocabulary

__all__ = ["Document", "Parsed", "Template", "Vocabulary"]
