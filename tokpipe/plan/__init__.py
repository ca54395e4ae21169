"""The plan: every clip to make, decided once and stored in parts.

``write`` reads the sources and stores their rows, ``duplicates`` finds rows that are the same
clip, ``read`` reads rows back, ``stored`` describes the plan and its files. ``sample`` draws rows
of a source without a plan.
"""

from tokpipe.plan.read import PlanReader
from tokpipe.plan.sample import RowSample, sample_rows
from tokpipe.plan.stored import PlanPart, StoredPlan
from tokpipe.plan.write import PART_ROWS, merge_columns, write_plan

__all__ = [
    "PART_ROWS",
    "PlanPart",
    "PlanReader",
    "RowSample",
    "StoredPlan",
    "merge_columns",
    "sample_rows",
    "write_plan",
]
