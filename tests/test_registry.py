"""Plugins: found by name, wherever they come from; listed without an import; a broken one harms no other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plugins import install_by_hand

from fxprune import registry
from fxprune.errors import CriterionError, PluginError
from fxprune.graph.analysis import analyse
from fxprune.scoring.score import score

CRITERIA = {
    "magnitude",
    "random",
    "taylor",
    "gradflow",
    "gradflow_preserving",
    "fisher",
    "snip",
    "synflow",
    "wanda",
    "activation",
    "bn_scale",
}
CRITERIA |= {"lamp", "fpgm", "hrank", "obs", "diff_pruning"}
PLUGIN = Path(__file__).parent / "plugin"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("criteria", CRITERIA),
        ("schedulers", {"one_shot", "iterative", "soft", "group_lasso"}),
        ("adapters", {"ddpm", "ldm", "dit", "timm", "torchvision", "transformers", "generic"}),
    ],
)
def test_every_own_plugin_loads_and_has_a_summary(kind: registry.Kind, expected: set[str]) -> None:
    assert expected <= set(registry.names(kind))
    for name in expected:
        assert isinstance(registry.get(kind, name), type)
    own = {p.name: p for p in registry.names_with_origin(kind) if p.package == "fxprune"}
    assert set(own) == expected
    assert all(p.summary and not p.summary.startswith("broken") for p in own.values())


def test_listing_imports_no_plugin() -> None:
    code = "import sys; from fxprune import registry; registry.names('criteria'); registry.names('adapters');"
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [m for m in done.stdout.split() if m.startswith(("fxprune.criteria", "fxprune.adapters"))]


def test_an_unknown_name_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(CriterionError, match=r"no criterion called 'magnitud'; did you mean 'magnitude'\?.*taylor"):
        registry.get("criteria", "magnitud")
    with pytest.raises(PluginError, match=r"no scheduler called 'zzz'\. Installed: .*one_shot"):
        registry.get("schedulers", "zzz")
    with pytest.raises(PluginError, match="no plugins of kind 'nets'; use one of criteria, schedulers, adapters"):
        registry.names("nets")  # type: ignore[arg-type]


def test_a_broken_plugin_is_named_and_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = "[fxprune.criteria]\nbroken = no_such_module_at_all:Nothing\nodd = math:pi\nabsent = math:Nothing\n"
    install_by_hand(tmp_path, "shaky-plugin", points)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.names("criteria")[:3] == ["absent", "broken", "odd"]
    with pytest.raises(PluginError, match=r"'broken' of package 'shaky-plugin' cannot be imported: ModuleNotFound"):
        registry.get("criteria", "broken")
    with pytest.raises(PluginError, match="'absent' of package 'shaky-plugin' cannot be imported: AttributeError"):
        registry.get("criteria", "absent")
    with pytest.raises(PluginError, match="'odd' of package 'shaky-plugin' is a float, not a class"):
        registry.get("criteria", "odd")
    assert registry.get("criteria", "magnitude").__name__ == "Magnitude"
    listed = {p.name: p for p in registry.names_with_origin("criteria")}
    assert listed["broken"].summary.startswith("broken: ")
    assert listed["taylor"].summary == "|θ ∂L/∂θ|, summed over a channel's elements."


def test_two_packages_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_by_hand(tmp_path, "rival", "[fxprune.criteria]\nmagnitude = math:pi\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match="fxprune and rival both register a criterion called 'magnitude'"):
        registry.get("criteria", "magnitude")
    assert registry.get("criteria", "taylor").__name__ == "Taylor"


def test_a_third_party_criterion_is_installed_and_scores_by_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "last_first.py"):  # a build leaves folders beside its sources: not in the repository
        (source / name).write_text((PLUGIN / name).read_text(encoding="utf-8"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import torch\n"
        "from fxprune import registry\n"
        "from fxprune.graph.analysis import analyse\n"
        "from fxprune.scoring.score import score\n"
        "net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))\n"
        "scores = score(analyse(net, ((torch.ones(1, 2),), {})), net, 'last_first')\n"
        "print(scores.criterion, scores.values['0.weight:0'].tolist())\n"
        "print([p.package for p in registry.names_with_origin('criteria') if p.name == 'last_first'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["last_first [3.0, 2.0, 1.0]", "['fxprune-test-plugin']"]


SHAKY = """
import torch

class Base:
    def __call__(self, ctx):
        return {n: torch.ones_like(p) for n, p in ctx.parameters.items()}

class Fine(Base): pass

class Shape(Base):
    def __call__(self, ctx):
        return {"0.weight": torch.ones(7)}

class NaN(Base):
    def __call__(self, ctx):
        return {n: p * torch.nan for n, p in ctx.parameters.items()}

class Group(Base):
    def __call__(self, ctx):
        return {"0.weigth:0": [1.0, 2.0, 3.0]}

class Changes(Base):
    def __call__(self, ctx):
        ctx.parameters["0.weight"].data.zero_()
        return super().__call__(ctx)

class Raises(Base):
    def __call__(self, ctx):
        raise IndexError("seven")

class Options(Base):
    def __init__(self, needed):
        pass
"""
BAD = [
    ("shape", CriterionError, r"criterion 'shape' of package 'shaky-plugin' returned shape \(7,\) for 0.weight"),
    ("nan", CriterionError, r"criterion 'nan' of package 'shaky-plugin': the saliency of 0.bias holds NaN"),
    ("group", CriterionError, r"'group' of package 'shaky-plugin' returned '0.weigth:0', .* did it mean '0.weight"),
    ("changes", CriterionError, "'changes' of package 'shaky-plugin' changed the model: 0.weight was written to"),
    (
        "raises",
        CriterionError,
        "'raises' of package 'shaky-plugin' failed: IndexError: seven; report it to shaky-plugin",
    ),
    ("options", PluginError, "criterion 'options' of package 'shaky-plugin' cannot be made: TypeError: .*'needed'"),
    ("gone", PluginError, "criterion 'gone' of package 'shaky-plugin' cannot be imported: ModuleNotFoundError"),
]


def test_a_bad_criterion_is_named_with_its_package_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = ["Fine", "Shape", "NaN", "Group", "Changes", "Raises", "Options"]
    points = "".join(f"{c.lower()} = shaky_criteria:{c}\n" for c in classes)
    install_by_hand(tmp_path, "shaky-plugin", f"[fxprune.criteria]\n{points}gone = no_such_module_at_all:Gone\n")
    (tmp_path / "shaky_criteria.py").write_text(SHAKY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    graph = analyse(net, ((torch.ones(1, 2),), {}))
    expected = score(graph, net, "magnitude")
    for name, kind, message in BAD:
        with pytest.raises(kind, match=message):
            score(graph, net, name)
        assert score(graph, net, "magnitude") == expected
        assert score(graph, net, "fine").values["0.weight:0"].tolist() == [4.0] * 3
    fine = registry.get("criteria", "shape")()
    with pytest.raises(CriterionError, match="'Shape' of package 'shaky-plugin' returned shape"):
        score(graph, net, fine)
