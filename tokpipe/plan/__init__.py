"""The plan: every clip to make, fixed once, stored in parts, and read again piece by piece."""

from tokpipe.plan.read import PlanReader
from tokpipe.plan.stored import PlanPart, StoredPlan
from tokpipe.plan.write import PART_ROWS, write_plan

__all__ = ["PART_ROWS", "PlanPart", "PlanReader", "StoredPlan", "write_plan"]
