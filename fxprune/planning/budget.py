"""`Budget`: how much goes, and of what."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.arguments import require_fields
from fxprune.errors import BudgetError
from fxprune.planning.costs.counted import MEASURES, Costs, amount, dense_cost


@dataclass(frozen=True)
class Budget:
    """How much is to go: a share, or what is to stay.

    Attributes:
        ratio: the share of `of` to remove, in [0, 1).
        of: "params", "macs", "channels", "memory" or "latency"; see `fxprune.plan`.
        target: in place of `ratio`, the cost to end at, in units of `of`.

    Raises:
        BudgetError: a budget that is wrong for any model.

    >>> Budget(0.4), Budget(of="macs", target=3e9)
    (Budget(ratio=0.4, of='params', target=None), Budget(ratio=None, of='macs', target=3000000000.0))
    """

    ratio: float | None = None
    of: str = "params"
    target: float | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        if self.of not in MEASURES:
            raise BudgetError(f"of={self.of!r} is unknown; choose one of {', '.join(MEASURES)}")
        if self.ratio is not None and self.target is not None:
            raise BudgetError(f"ratio={self.ratio} and target={self.target} both set the budget; pass one of them")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise BudgetError(
                f"ratio={self.ratio} is outside [0, 1): it is the share of {self.of} to remove, such as 0.4"
            )

    def share(self, costs: Costs) -> float | None:
        """The share of the cost to remove; None where nothing is asked.

        Raises:
            BudgetError: the target is more than there is, or nothing.
        """
        if self.target is None:
            return self.ratio
        total = dense_cost(costs, self.of)
        if not 0 < self.target <= total:
            raise BudgetError(
                f"target={self.target:,} is outside (0, {total:,.0f}]: it is what stays of the "
                f"{amount(self.of, total)} of this {costs.graph.model_class}, such as {0.6 * total:.3g}"
            )
        return 1 - self.target / total
