"""What the parts of the dispatcher write to: commands, and counts of what the run did."""

from collections import defaultdict
from typing import Any, Literal

from tokpipe.runtime.dispatch.protocol import Abort, Command, Finish, Note
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.logs import EventName


class Outbox:
    """Collects commands, hands out ids, and counts by the field names of ``Account``.

    Counts change in place, because a new ``Account`` for every lease would cost too much.
    """

    def __init__(self) -> None:
        self.is_over = False  # The job has ended: nothing follows the command that ended it
        self._commands: list[Command] = []
        self.latest_id = 0
        self._past = Account()
        self._amounts: dict[tuple[str, str | None], float] = defaultdict(int)

    def emit(self, command: Command) -> None:
        if not self.is_over:
            self._commands.append(command)
            self.is_over = isinstance(command, Abort | Finish)

    def note(
        self, event: EventName, message: str, *, is_warning: bool = False, **fields: object
    ) -> None:
        self.emit(Note(event, message, fields, is_warning))

    def abort(self, message: str, kind: Literal["runtime", "config"] = "runtime") -> None:
        """End the job: there is no way to finish it."""
        self.emit(Abort(kind, message))

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

    def add_account(self, account: Account) -> None:
        self._past += account

    @property
    def account(self) -> Account:
        """Everything counted so far."""
        values: dict[str, Any] = {}
        for (name, by), amount in self._amounts.items():
            if by is None:
                values[name] = amount
            else:
                values.setdefault(name, {})[by] = amount
        return self._past + Account(**values)
