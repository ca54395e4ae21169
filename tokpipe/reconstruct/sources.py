"""Opens what the clips of an output were made of."""

from contextlib import ExitStack
from dataclasses import replace

from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.reader import Output
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut, WorkItem


class Sources(ExitStack):
    """The sources of an output, decoded as its job did. Use it as a context manager.

    Raises:
        ConfigError: the caller does not trust what the output names.
    """

    def __init__(self, output: Output, pieces: Cut | None) -> None:
        super().__init__()
        output.trust.check_sources(output.store.uri)
        self.job = job = output.record.recorded_job(output.store.uri)
        sources, plan = output.trust.sources, StoredPlan.of(output.record, output.state.growth)
        self._is_own = bool(sources)
        self._plan = PlanReader(output.store, plan, sources or job.sources)
        how = job.sampling, job.frames, job.decode, output.trust.storage
        self.stage = self.enter_context(DecodeStage(*how, pieces))

    def item(self, plan_row: int) -> WorkItem:
        """Return what names a row's source to the decode stage."""
        (item,) = self._plan.items([plan_row])
        # What the job of an output allows, its author wrote, who may be someone else, unless the
        # caller's own job file named the sources.
        allowed = item.allowed if self._is_own else ()
        return replace(item, allowed=allowed)
