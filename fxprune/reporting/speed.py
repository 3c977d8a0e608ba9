"""How fast a result is beside its dense model: by the clock where both were timed, else by what is counted."""

from __future__ import annotations

from dataclasses import dataclass, replace

NEAR = 0.03  # of the asked speed-up, that a measured one may miss


@dataclass(frozen=True)
class Timing:
    """Seconds of one forward on the example inputs, dense and pruned: the fastest of several, in turns.

    Attributes:
        before, after: seconds.
        predicted: the share of the time that the plan said would go; None: it was no latency that was asked for.
        asked: the share that was asked for, with `of="latency"`.
        device: what they ran on, in words; of a loaded model it need not be the device at hand.
        tries: how many finished networks were timed until the share was met, or no more came nearer.
    """

    before: float
    after: float
    predicted: float | None = None
    asked: float | None = None
    device: str = ""
    tries: int = 1

    @property
    def share(self) -> float:
        """The share of the time that went."""
        return 1 - self.after / self.before

    @property
    def speedup(self) -> float:
        """How many times as fast the pruned model is.

        >>> Timing(0.03, 0.02).speedup
        1.5
        """
        return self.before / self.after

    @property
    def off(self) -> float:
        """By which share the speed-up is beside what was asked; 0 where nothing was.

        >>> round(Timing(0.04, 0.022, asked=0.5).off, 3)
        -0.091
        """
        return 0.0 if self.asked is None else self.speedup * (1 - self.asked) - 1

    def since(self, earlier: Timing) -> Timing | None:
        """Of two cuts one after the other: what both of them took off, in the seconds of the second.

        None where they were timed on different devices: a speed-up on one is none on the other.
        """
        if self.device != earlier.device:
            return None
        before = self.before * earlier.speedup
        asked = None if self.asked is None else 1 - (1 - self.asked) * self.before / before
        return replace(self, before=before, predicted=None, asked=asked)

    def __str__(self) -> str:
        line = (
            f"speed: {self.speedup:.2f}x, {self.before * 1e3:.4g} ms -> {self.after * 1e3:.4g} ms a forward, measured"
            f"{f' on {self.device}' if self.device else ''}"
        )
        if self.asked is None:
            return line
        times = f"{self.tries} networks timed" if self.tries > 1 else "one network timed"
        predicted = "" if self.predicted is None else f", {self.predicted:.1%} predicted"
        met = f"within {NEAR:.0%}" if abs(self.off) <= NEAR else f"{abs(self.off):.1%} too {self._which}"
        return (
            f"{line}; asked {1 / (1 - self.asked):.2f}x: {met} ({times}; {self.share:.1%} of the time went{predicted})"
        )

    @property
    def _which(self) -> str:
        return "fast" if self.off > 0 else "slow"
