"""Trains tokenizers and measures them: ``python -m tokpipe.train`` and ``... .evaluate``."""
