"""Trains and measures tokenizers: ``tokpipe train``, ``python -m tokpipe.train.evaluate``."""
