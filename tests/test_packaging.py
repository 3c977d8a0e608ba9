"""The packaging promises: nothing is missing from the wheel, nothing is stale, `import fxprune` stays light."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.reporting.figures import figure_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("criteria", "schedulers", "adapters")
NOT_AT_IMPORT = {"diffusers", "timm", "transformers", "torchvision", "matplotlib", "sklearn", "torch_pruning"}
# An absolute path into somebody's machine; a URL or a relative path has a character of this class before its slash.
MACHINE_PATH = re.compile(rb"(?<![\w.~$/}-])/(?:work|home|root|Users)/[\w.]")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk() -> list[str]:
    folders = [
        Path(folder) for folder, _, files in os.walk(ROOT / "fxprune", followlinks=True) if "__init__.py" in files
    ]
    return sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)


def test_every_package_on_disk_is_listed(pyproject: dict[str, Any]) -> None:
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == packages_on_disk()


@pytest.mark.parametrize("name", LINKED)
def test_top_level_folder_is_linked_and_mapped(pyproject: dict[str, Any], name: str) -> None:
    link = ROOT / "fxprune" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert (link / "__init__.py").is_file()
    assert pyproject["tool"]["setuptools"]["package-dir"][f"fxprune.{name}"] == name


def test_installed_entry_points_are_those_of_pyproject(pyproject: dict[str, Any]) -> None:
    declared = {("console_scripts", name, value) for name, value in pyproject["project"]["scripts"].items()}
    for group, entries in pyproject["project"]["entry-points"].items():
        declared |= {(group, name, value) for name, value in entries.items()}
    installed = {(e.group, e.name, e.value) for e in importlib.metadata.distribution("fxprune").entry_points}
    assert installed == declared, "the installed metadata is stale: run `make setup`"


def test_version_is_that_of_the_metadata() -> None:
    assert fxprune.__version__ == importlib.metadata.version("fxprune")


def test_import_is_light(tmp_path: Path) -> None:
    code = "import sys, fxprune; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not NOT_AT_IMPORT & set(done.stdout.split())


def test_no_file_holds_a_machine_path() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / os.fsdecode(name) for name in listing.split(b"\0") if name]
    assert files
    held = {
        path.relative_to(ROOT).as_posix() for path in files if path.is_file() and MACHINE_PATH.search(path.read_bytes())
    }
    assert not held


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(fxprune.InputsError, match=r"fxprune\[plots\]"):
        figure_of(1, 1)


INSIDE_FUNCTIONS = {  # what needs an optional library, and is imported when it is asked for
    ("fxprune.api", "fxprune.training.run"),  # accelerate
    ("fxprune.studies.asked", "fxprune.training.run"),  # accelerate
    ("fxprune.cli.demo", "fxprune.demo.run"),  # scikit-learn, torchmetrics
}


def test_imports_stand_at_the_top_of_a_file() -> None:
    found = set()
    for path in (ROOT / "fxprune").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in top and (node.module or "").startswith("fxprune"):
                found.add((module, node.module))
    assert found == INSIDE_FUNCTIONS, "shared types belong further down, not imports inside functions"
