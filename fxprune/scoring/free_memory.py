"""How much memory may still be taken, in bytes: of a GPU, or of the machine within the limits of its container."""

from __future__ import annotations

from pathlib import Path

import torch

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [n for n in (_available(PROC / "meminfo"), *_left_in_groups(PROC, CGROUP)) if n is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    """Linux's own estimate of what can be taken without swapping."""
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_groups(proc: Path, root: Path) -> list[int]:
    """What is left in the control groups of this process and in those around them, versions 2 and 1."""
    found = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        here = top / path.lstrip("/")
        # Inside a container the path may be one of the host's that is not there: then the root is the group.
        for folder in dict.fromkeys([here, *(p for p in here.parents if p.is_relative_to(top)), top]):
            found += _left(folder, *names)
    return found


def _left(folder: Path, limit: str, used: str) -> list[int]:
    most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
    if not most.isdecimal() or not taken.isdecimal():
        return []  # "max", or no such group
    # Files that the kernel keeps in memory count as used, and go when the memory is asked for.
    stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines() if len(line.split()) == 2)
    cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return [max(0, int(most) - int(taken) + cached)]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
