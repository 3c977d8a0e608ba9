"""What holds for every test: its verdict does not hang on the tests before it, on the clock, or on what was drawn."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# A deadline and a health check ask how long a draw took, which says how busy the machine is.
settings.register_profile(
    "fxprune", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("fxprune")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One seed before each test and the fixtures made for it: pytest-xdist deals the tests out in any order.

    accelerate forgets the precision that a test before chose: it would refuse another one.
    """
    if (accelerate := sys.modules.get("accelerate.state")) is not None:
        accelerate.AcceleratorState._reset_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
