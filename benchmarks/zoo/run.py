"""Prune every network of the zoo at ratio 0.5 and write one JSON line for each; then docs/zoo.md.

python benchmarks/zoo/run.py [--only REGEX] [--limit SECONDS] [--memory GB] [--jobs N] [--quick] [--resume]
                             [--out FILE]

The libraries are imported once; every network then has a process of its own, forked before any op has run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name, _value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
    os.environ.setdefault(_name, _value)

import torch  # noqa: E402
from case import Case  # noqa: E402
from judge import judge  # noqa: E402
from models import zoo  # noqa: E402
from report import DOCUMENT, write  # noqa: E402

RESULTS = Path(__file__).with_name("results.jsonl")


@dataclass
class Job:
    """A forked process that judges one case, and the file that it tells its progress in."""

    case: Case
    process: int
    told: Path
    start: float
    peak: float = 0.0
    cpu: float = 0.0

    def memory(self) -> float:
        """Resident GB."""
        try:
            pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9

    def ended(self, wait: bool = False) -> bool:
        done, _, used = os.wait4(self.process, 0 if wait else os.WNOHANG)
        self.cpu = used.ru_utime + used.ru_stime
        return done != 0

    def stop(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        self.ended(wait=True)

    def result(self, why: tuple[str, str] | None) -> dict[str, Any]:
        text = self.told.read_text()
        record: dict[str, Any] = json.loads(text) if text else {"name": self.case.name, "family": self.case.family}
        if why is not None:
            status, reason = why
            record |= {"status": status, "reason": f"{reason}; {record.get('reason', '')}"}
        record.setdefault("status", "error")
        record |= {
            "wall": round(time.time() - self.start, 1),
            "cpu": round(self.cpu, 1),
            "peak_gb": round(self.peak, 2),
        }
        self.told.unlink()
        return record


def start(case: Case, folder: Path, certify: bool) -> Job:
    told = folder / re.sub(r"\W", "_", case.name)
    told.write_text("")
    process = os.fork()
    if process:
        return Job(case, process, told, time.time())
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)

        def tell(record: dict[str, Any]) -> None:
            beside = told.with_suffix(".new")
            beside.write_text(json.dumps(record))
            beside.replace(told)

        tell(judge(case, tell, certify))
    finally:
        os._exit(0)


def main() -> None:
    asked = _arguments()
    table = {n: c for n, c in zoo().items() if re.search(asked.only, n)}
    out = Path(asked.out)
    done = list(_lines(out)) if out.exists() else []
    if asked.resume:
        out.write_text("".join(json.dumps(r) + "\n" for r in done))
        todo = [c for n, c in table.items() if n not in {r["name"] for r in done}]
    else:
        todo = list(table.values())
        kept = [r for r in done if r["name"] not in table] if asked.only != "." else []
        out.write_text("".join(json.dumps(r) + "\n" for r in kept))
    print(f"{len(todo)} of {len(table)} networks to do")
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        _sweep(todo, out, Path(folder), asked)
    cpu = sum(r.get("cpu", 0.0) for r in _lines(out) if r["name"] in table)
    print(f"{time.time() - started:.0f} s, {cpu:.0f} s of one core for {len(table)} networks")
    if out == RESULTS:
        write(list(_lines(out)), DOCUMENT)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file; a last line that an interrupted run left unfinished is passed over."""
    for text in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".", help="names to run")
    parser.add_argument("--limit", type=float, default=300, help="seconds a network")
    parser.add_argument("--memory", type=float, default=12, help="GB a network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--quick", action="store_true", help="leave out the permutation certificate")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--out", default=str(RESULTS), help="where the JSON lines go")
    return parser.parse_args()


def _sweep(todo: list[Case], out: Path, folder: Path, asked: argparse.Namespace) -> None:
    running: list[Job] = []
    waiting, number = list(todo), 0
    while waiting or running:
        while waiting and len(running) < asked.jobs:
            running.append(start(waiting.pop(0), folder, not asked.quick))
        time.sleep(0.05)
        for job in list(running):
            why = None
            if not job.ended():
                memory = job.memory()
                job.peak = max(job.peak, memory)
                if memory > asked.memory:
                    why = ("error", f"over {asked.memory:g} GB")
                elif time.time() - job.start > asked.limit:
                    why = ("timeout", f"over {asked.limit:g} s")
                if why is None:
                    continue
                job.stop()
            running.remove(job)
            record = job.result(why)
            number += 1
            with out.open("a") as f:
                f.write(json.dumps(record) + "\n")
            print(f"[{number}/{len(todo)}] {line(record)}", flush=True)


def line(r: dict[str, Any]) -> str:
    removed = f"{r['removed']:6.1%}" if "removed" in r else " " * 6
    forward = r.get("forward", "")
    return f"{r['name']:48s} {r['status']:8s} {removed} {forward:6s} {r['wall']:6.1f} s  {r.get('reason', '')[:150]}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.setrecursionlimit(10_000)
    main()
