"""Trains tokenizers: ``tokpipe train``."""
