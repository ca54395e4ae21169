"""Tokenizers: pixels to codes and back, one class for every kind that a job can name."""

from tokpipe.models.tokenizers.base import NOT_FINITE, VideoTokenizer
from tokpipe.models.tokenizers.build import build_tokenizer

__all__ = ["NOT_FINITE", "VideoTokenizer", "build_tokenizer"]
