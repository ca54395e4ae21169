"""Counts up the account of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tokpipe.telemetry.account import Account


class Ledger:
    """Where the parts of the dispatcher write down what they see, by the names of ``Account``.

    It changes in place, because a new ``Account`` for every lease would cost too much.
    """

    def __init__(self) -> None:
        self._past = Account()
        self._amounts: dict[tuple[str, str | None], float] = defaultdict(int)

    def add(self, name: str, amount: float = 1, *, by: str | None = None) -> None:
        """Add to a field; ``by``: to this key of it, such as a stage."""
        self._amounts[name, by] += amount

    def add_account(self, account: Account) -> None:
        """Add a whole account."""
        self._past += account

    @property
    def account(self) -> Account:
        """All that was added so far."""
        values: dict[str, Any] = {}
        for (name, by), amount in self._amounts.items():
            if by is None:
                values[name] = amount
            else:
                values.setdefault(name, {})[by] = amount
        return self._past + Account(**values)
