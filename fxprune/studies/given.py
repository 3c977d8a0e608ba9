"""What several studies do with their arguments."""

from __future__ import annotations

from fxprune.errors import BudgetError
from fxprune.planning.limits import Limits


def require_free(limits: Limits, what: str) -> None:
    """Raise `BudgetError` where limits are those of one plan alone.

    Args:
        what: is to be made of several, for messages.
    """
    if limits.ratios is not None:
        raise BudgetError(f"ratios= says how much of each part goes, which {what} is to find; leave it out")
    if limits.shape != "free":
        raise BudgetError(f"shape={limits.shape!r}: {what} is for shape='free'; make one stock shape by fxprune.prune")
    if limits.round_to == "auto":
        raise BudgetError(f'round_to="auto" is for one plan; pass a number for {what}, such as round_to=8')
