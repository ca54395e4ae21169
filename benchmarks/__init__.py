"""Measures how close tokpipe comes to what a machine can do; each figure comes with its limit.

Every figure is a ratio within one run, or a bound that does not depend on the state of the machine.
"""
