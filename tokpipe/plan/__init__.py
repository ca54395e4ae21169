"""The plan: every clip to make, decided once and stored in parts."""

from tokpipe.plan.parts import PART_ROWS
from tokpipe.plan.stored import PlanReader, StoredPlan
from tokpipe.plan.write import RowSample, merge_columns, write_plan

__all__ = ["PART_ROWS", "PlanReader", "RowSample", "StoredPlan", "merge_columns", "write_plan"]
