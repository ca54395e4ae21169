"""Decodes codes back to frames, and compares them with their sources."""

from tokpipe.reconstruct.reconstructor import Reconstructor
from tokpipe.reconstruct.side_by_side import SideBySide
from tokpipe.reconstruct.source import SourceFrames

__all__ = ["Reconstructor", "SideBySide", "SourceFrames"]
