"""One measured line of a proof: a case, its value, its bound, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """`value rule bound`, measured just now."""

    case: str
    value: float
    bound: float
    rule: Literal["<=", ">="] = "<="
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the bound holds; a NaN never does."""
        return self.value <= self.bound if self.rule == "<=" else self.value >= self.bound

    def to_dict(self) -> dict[str, Any]:
        """The JSON-able form."""
        return {**asdict(self), "ok": self.ok}
