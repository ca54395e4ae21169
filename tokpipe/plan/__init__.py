"""The plan: every clip to make, decided once and stored in parts."""

from tokpipe.plan.stored import PlanReader, StoredPlan
from tokpipe.plan.write import PART_ROWS, merge_columns, sample_rows, write_plan

__all__ = ["PART_ROWS", "PlanReader", "StoredPlan", "merge_columns", "sample_rows", "write_plan"]
