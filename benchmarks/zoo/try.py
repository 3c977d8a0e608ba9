"""Does every network of the zoo build and run?  python benchmarks/zoo/try.py [REGEX]"""

from __future__ import annotations

import re
import sys
import warnings

import torch
from judge import shapes, size
from models import zoo

warnings.simplefilter("ignore")
torch.set_num_threads(1)
for name, case in zoo().items():
    if re.search(sys.argv[1] if len(sys.argv) > 1 else ".", name):
        try:
            net = case.build()
            print(f"{name:44s} {size(net) / 1e6:7.2f} M  {shapes(net, case)[:3]}", flush=True)
        except Exception as e:  # noqa: BLE001  what a network does wrong is the result
            print(f"{name:44s} BROKEN {type(e).__name__}: {str(e)[:220]!r}", flush=True)
