"""What the parts of the dispatcher share: time, commands, counts and kept outputs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.protocol import AttemptId, Command, Place
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import EventName


class Outbox:
    """Knows the time, collects commands, hands out ids, and counts by the fields of ``Account``: in
    place, because a new ``Account`` for every lease would cost too much."""

    def __init__(self) -> None:
        self.now = 0.0  # The time of the event that is being handled, in seconds
        self.is_over = False  # The job has ended: nothing follows the command that ended it
        self._commands: list[Command] = []
        self.latest_id = 0
        self.committed = Account()  # What commits have added
        self._amounts: dict[tuple[str, str | None], float] = defaultdict(int)

    def emit(self, command: Command) -> None:
        if not self.is_over:
            self._commands.append(command)
            self.is_over = isinstance(command, protocol.Abort | protocol.Finish)

    def note(
        self, event: EventName, message: str, *, is_warning: bool = False, **fields: object
    ) -> None:
        self.emit(protocol.Note(event, message, fields, is_warning))

    def abort(self, message: str, kind: Literal["runtime", "config"] = "runtime") -> None:
        """End the job: there is no way to finish it."""
        self.emit(protocol.Abort(kind, message))

    def take(self) -> list[Command]:
        """Return the commands since the last call."""
        commands, self._commands = self._commands, []
        return commands

    def new_id(self) -> int:
        """Return a number that no actor, attempt, shard or stream of this run has."""
        self.latest_id += 1
        return self.latest_id

    def count(self, name: str, amount: float = 1, *, by: str | None = None) -> None:
        """Add to a field of the account; ``by``: to this key of it, such as a stage."""
        self._amounts[name, by] += amount

    @property
    def account(self) -> Account:
        """What the run has done and spent so far."""
        values: dict[str, Any] = {}
        for (name, by), amount in self._amounts.items():
            if by is None:
                values[name] = amount
            else:
                values.setdefault(name, {})[by] = amount
        return self.committed + Account(**values)


class Outputs:
    """Counts the unread clips of each kept output; a part is released with its last clip."""

    def __init__(self, out: Outbox) -> None:
        self._out = out
        self._unread: dict[AttemptId, Counter[int]] = {}  # By part of the output

    def keep(self, attempt: AttemptId, places: Sequence[Place]) -> None:
        """Keep what is at these places until it is used; without any, release the output now."""
        if places:
            self._unread[attempt] = Counter(place.part for place in places)
        else:
            self._out.emit(protocol.Release(attempt))

    def use_up(self, places: Iterable[Place]) -> None:
        """What is at these places is no longer needed."""
        for source, _, part in places:
            unread = self._unread[source]
            unread[part] -= 1
            if not unread.total():
                del self._unread[source]
                self._out.emit(protocol.Release(source))
            elif not unread[part]:
                self._out.emit(protocol.Release(source, part=part))
