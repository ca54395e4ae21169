"""Decodes codes back to frames, and compares them with their sources."""

from tokpipe.reconstruct.frames import Reconstructor, SideBySide, SourceFrames

__all__ = ["Reconstructor", "SideBySide", "SourceFrames"]
