"""A conformance kit for plugins, to be called from their own tests; needs nothing beside fxprune itself.

    check_criterion(Mine)          one finite number a channel, the same each time, whatever the order of the channels
    check_scheduler(Mine)          masks in [0, 1] that end binary, on budget, and resume where they were saved
    check_adapter(Mine, model)     inputs that run, a loss that fits the calibration batches, names that exist

Each raises an AssertionError that names the plugin, the package that registered it, and what it did.
"""

from fxprune.testing.adapters import check_adapter
from fxprune.testing.criteria import check_criterion
from fxprune.testing.schedulers import check_scheduler

__all__ = ["check_adapter", "check_criterion", "check_scheduler"]
