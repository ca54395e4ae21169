"""Decodes codes back to frames, and compares them with their sources."""

from tokpipe.reconstruct.frames import Reconstructor, SideBySide

__all__ = ["Reconstructor", "SideBySide"]
