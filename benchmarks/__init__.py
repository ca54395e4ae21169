"""Measures how near tokpipe comes to what a machine can do, each figure beside its limit.

Every figure is a ratio within one run, or an absolute bound that does not depend on the machine's
mood. ``figures`` holds what a benchmark gives, ``timing`` the fair comparison of two pieces of
code, ``machine`` what they ran on, ``catalogue`` which benchmarks there are.
"""
