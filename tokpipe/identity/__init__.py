"""Clip ids, and the fingerprint of everything that determines the codes."""
