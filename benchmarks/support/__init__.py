"""Shared by the scripts in benchmarks/."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def in_own_process(script: str, name: str, *options: str) -> dict[str, Any] | str:
    """Run `script --one name` in a process of its own: the JSON of its last line, or why it failed, in one line."""
    command = [sys.executable, script, "--one", name, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no message"])[-1]
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured
