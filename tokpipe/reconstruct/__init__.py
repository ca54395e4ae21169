"""From codes back to pixels, by the policy that encoded them; compared with the source."""

from tokpipe.reconstruct.reconstructor import Reconstructor
from tokpipe.reconstruct.side_by_side import SideBySide
from tokpipe.reconstruct.source import SourceFrames

__all__ = ["Reconstructor", "SideBySide", "SourceFrames"]
