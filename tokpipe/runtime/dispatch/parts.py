"""The owners of the dispatcher's state, side by side."""

from collections.abc import Callable

from tokpipe.runtime.dispatch.blame import Blame
from tokpipe.runtime.dispatch.fleet import Fleet
from tokpipe.runtime.dispatch.outbox import Flights, Outbox
from tokpipe.runtime.dispatch.pools import Pools
from tokpipe.runtime.dispatch.protocol import Limits
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.settlement import Breaker, Settlement
from tokpipe.runtime.dispatch.streams import StreamedClips
from tokpipe.types import ClipRef, WorkItem


class Parts:
    """Each part owns its state. ``Dispatcher`` and ``returns`` move work between them.

    ``ref_of`` names the clip of an item that is rejected unseen.
    """

    def __init__(self, limits: Limits, ref_of: Callable[[WorkItem], ClipRef]) -> None:
        self.out = out = Outbox()
        self.pools = Pools(limits, out)
        self.fleet = Fleet(limits, out)
        self.flights = Flights(out)
        self.queues = Queues(limits, out)
        self.streams = StreamedClips()
        self.blame = Blame(limits.runtime.max_attempts, ref_of, out)
        self.settlement = Settlement(limits, self.queues, out)
        self.breaker = Breaker(limits, self.settlement, out)
