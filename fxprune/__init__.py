"""fxprune: structural pruning of PyTorch networks, right, general and exact about budgets.

    small = fxprune.prune(model, ratio=0.4)

is five calls in order: `trace` → `score` → `plan` → `rewrite` → `verify`.
"""

import lazy_loader

from fxprune import pretrained  # noqa: F401 - there diffusers finds, by name, what reads pruned components

# The names are in __init__.pyi; each is imported when it is first asked for, so that `fxprune --help` needs no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
