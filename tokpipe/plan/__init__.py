"""The plan: every clip to make, decided once and stored in parts."""

from tokpipe.plan.stored import PlanReader, StoredPlan
from tokpipe.plan.write import PART_ROWS, RowSample, merge_columns, write_plan

__all__ = ["PART_ROWS", "PlanReader", "RowSample", "StoredPlan", "merge_columns", "write_plan"]
