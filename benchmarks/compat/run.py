"""The test suite on other versions of Python and torch (`make compat`).

    python benchmarks/compat/run.py                                    every Python here, oldest and newest torch
    python benchmarks/compat/run.py --python 3.10 --torch 2.11.0       one of them
    python benchmarks/compat/run.py --pytest "-m 'not slow' -n 4"      part of the suite, on four cores

For each pair: a virtual environment, `pip install -e ".[dev]"` with that torch, and the suite, in a clone of what is
committed.  Pythons are those on the path, of pyenv and of uv.  A pair costs about 6 GB of disk.  Results go to
`--results`, one a line; `--page` puts all of them into the table of a page, between its two comments.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.11.0", "newest")
TOLD = ("torch", "torchvision", "numpy", "transformers", "diffusers", "timm")
BEGIN, END = "<!-- compat -->", "<!-- end of compat -->"
Row = dict[str, str]


def main() -> int:
    options = _options()
    source = options.work / "source"
    shutil.rmtree(source, ignore_errors=True)
    _run("git", "clone", "--quiet", "--shared", ROOT, source)
    good = True
    for version in options.python:
        found = interpreter(version)
        if found is None:
            print(f"Python {version} is not here", flush=True)
            continue
        for torch in options.torch:
            row = tried(source, options, version, found, torch)
            good &= row["result"].startswith("passed")
            kept = [r for r in rows(options.results) if (r["python"], r["torch"]) != (row["python"], row["torch"])]
            options.results.write_text("".join(json.dumps(r) + "\n" for r in sorted([*kept, row], key=_order)))
            print(table([row]), flush=True)
    if options.page:
        into(options.page, table(rows(options.results)))
    return not good


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions, such as 3.12")
    parser.add_argument("--torch", nargs="+", default=TORCHES, help='versions, or "newest"')
    parser.add_argument("--pytest", default="", help="further arguments of pytest")
    parser.add_argument("--work", type=Path, default=ROOT / ".compat", help="folder for the environments, kept")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.jsonl"))
    parser.add_argument("--page", type=Path, help="a page of the documentation that holds the table")
    return parser.parse_args()


def interpreter(version: str) -> Path | None:
    """A Python of that version that runs."""
    for path in _candidates(version):
        done = subprocess.run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        if done.returncode == 0 and done.stdout.decode().strip() == version:
            return path
    return None


def _candidates(version: str) -> Iterator[Path]:
    if there := shutil.which(f"python{version}"):
        yield Path(there)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    if shutil.which("uv"):
        done = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True)
        yield from map(Path, done.stdout.split()[:1])


def tried(source: Path, options: argparse.Namespace, version: str, found: Path, torch: str) -> Row:
    """Install and test one pair; the row of its result."""
    home = options.work / f"python{version}-torch-{torch}"
    python = home / "bin" / "python"
    if not python.exists():
        _run(found, "-m", "venv", home)
    row = {"python": version, "torch": torch, "date": datetime.now(timezone.utc).date().isoformat()}
    wanted = [] if torch == "newest" else [f"torch=={torch}"]
    log = home / "install.log"
    if _logged(log, [python, "-m", "pip", "install", "--disable-pip-version-check", "-e", f"{source}[dev]", *wanted]):
        return {**row, "result": f"not installed: {_last(log)}"}
    row |= _versions(python)
    log, tests = home / "tests.log", ["-q", "--doctest-modules", "tests", "fxprune", *shlex.split(options.pytest)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    failed = _logged(log, [python, "-m", "pytest", *tests], cwd=source, env=environment)
    return {**row, "result": f"{'failed' if failed else 'passed'}: {_last(log)}", "arguments": options.pytest}


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


def _logged(log: Path, command: list[str | Path], **options: object) -> int:
    with log.open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, **options).returncode  # type: ignore[call-overload,no-any-return]


def _last(log: Path) -> str:
    """The last line that says something, without its time and frame."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r" in [\d.]+s.*", "", lines[-1].strip("= ")) if lines else ""


def _versions(python: Path) -> Row:
    """What was installed, and the whole version of Python."""
    code = (
        "import json, platform, sys; from importlib.metadata import version as v; "
        "print(json.dumps({'python': platform.python_version(), **{n: v(n) for n in sys.argv[1:]}}))"
    )
    done = subprocess.run([python, "-c", code, *TOLD], capture_output=True, text=True, check=True)
    held: Row = json.loads(done.stdout)
    return held


def rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _order(row: Row) -> list[tuple[int, ...]]:
    return [tuple(map(int, re.findall(r"\d+", row[name])[:3])) for name in ("python", "torch")]


def table(held: list[Row]) -> str:
    """Results in Markdown."""
    names = ["python", *TOLD, "result", "date"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row.get(n, "") for n in names) + " |" for row in held)])


def into(page: Path, text: str) -> None:
    """Put a table between a page's two comments."""
    before, begun, rest = page.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        sys.exit(f"{page} has no {BEGIN} and {END} to put the table between")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
