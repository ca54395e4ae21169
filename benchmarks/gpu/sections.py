"""The sections in order of worth, and how long each may take. Imports nothing heavy."""

from typing import NamedTuple


class Section(NamedTuple):
    """One section: the function ``run`` of ``benchmarks.gpu.NAME`` (or ``module.name``)."""

    name: str
    title: str
    budget_s: float
    """It is ended after this, with what it has found."""
    module: str
    function: str = "run"


SECTIONS = (
    Section("versions", "Versions, and whether Triton works", 20, "versions"),
    Section("rates", "What this GPU can do", 15, "rates"),
    Section("norm", "Norms and residual sums of large tensors", 50, "kernels"),
    Section("convolutions", "The six shapes of convolution", 60, "convolutions"),
    Section("encoder", "The encoder: speed and memory", 75, "encoder"),
    Section("codes", "The encoder: bits and codes", 45, "encoder", "codes"),
    Section("stage", "A profile of eight batches in the encode stage", 40, "stage"),
    Section("pressure", "Too little memory", 35, "memory", "pressure"),
    Section("allocator", "Memory over many shapes", 40, "memory", "allocator"),
    Section("capture", "A capture that fails", 15, "memory", "capture"),
    Section("compiler", "With and without a C compiler", 45, "compiler"),
    Section("illegal", "An illegal access, in another process", 25, "faults"),
)
TOTAL_S = 465.0
"""For all of them, with the start of the process: under eight minutes."""
