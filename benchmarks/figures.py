"""What a benchmark yields: figures with their targets, as lines and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    ``unit`` follows the value: ``x`` for a ratio, ``s``, ``GB``, ``clips/s``. ``details`` are
    the numbers behind it; ``limit`` among them is the most that the figure could be on this
    machine, measured in the same run. ``remark`` says what a reader must know to judge it.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"
    details: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    remark: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def line(self) -> str:
        """Name, value, target, verdict, and details, on one line."""
        text = f"{self.name}: {number_text(self.value)} {self.unit}"
        if self.target is not None:
            sign = ">=" if self.better == "higher" else "<="
            verdict = "pass" if self.passed else "NOT REACHED"
            text += f", target {sign} {number_text(self.target)} {self.unit}, {verdict}"
        if self.details:
            pairs = (
                f"{name} {number_text(value) if isinstance(value, float) else value}"
                for name, value in self.details.items()
            )
            text += f"  [{', '.join(pairs)}]"
        return f"{text}  ({self.remark})" if self.remark else text

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "details": dict(self.details), "passed": self.passed}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A figure that could not be measured here, and why."""

    name: str
    reason: str

    def line(self) -> str:
        return f"{self.name}: not measured, {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "skipped": self.reason}


Result = Figure | Skipped


def number_text(value: float) -> str:
    """Four significant digits, with a comma between thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
