"""python -m fuzz {networks,folders,arguments,kills} [--count N] [--from N] [--seed N] [--out FILE]"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

CAMPAIGNS = {"networks": "nets", "folders": "folders", "arguments": "arguments", "kills": "kills"}


def main() -> int:
    """Run a campaign, print its table and all that is wrong; 1 if something is."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--count", type=int, default=200, help="trials")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of outcomes, gone on with where it holds some")
    given = parser.parse_args()
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        os.environ.setdefault(name, value)
    from fuzz.trials import read, run, table

    numbers = range(given.first, given.first + given.count)
    fresh = []
    for outcome in run(import_module(f"fuzz.{CAMPAIGNS[given.campaign]}").campaign, numbers, given.seed, given.out):
        fresh.append(outcome)
        if outcome.bad:
            print(f"{outcome.number}: {outcome.outcome}: {outcome.note}", file=sys.stderr, flush=True)
    every = read(given.out) if given.out else fresh
    print(table(every))
    return int(any(o.bad for o in every))


if __name__ == "__main__":
    sys.exit(main())
