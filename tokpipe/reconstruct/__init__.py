"""Finds what codes stand for, and decodes them to frames."""
