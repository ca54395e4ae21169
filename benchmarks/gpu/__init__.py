"""What only a GPU can show about tokpipe, in eight minutes: right results, speed, memory, trouble.

Needs torch, Triton, numpy and one GPU. A part that needs another package is left out
by name.
"""
