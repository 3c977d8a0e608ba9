"""fxprune: structural pruning of PyTorch networks, right, general and exact about budgets.

    small = fxprune.prune(model, criterion="gradflow", ratio=0.4)

is five calls in order: `trace` → `score` → `plan` → `rewrite` → `verify`.
"""

from fxprune.api import apply, calibration, prune, trace
from fxprune.average import Average
from fxprune.carry import Carry
from fxprune.channels import ChannelGraph, Group, Slice
from fxprune.compare import compare
from fxprune.compared import Comparison
from fxprune.distill import Distillation
from fxprune.draft import Draft
from fxprune.energy import Energy
from fxprune.errors import (
    BudgetError,
    CriterionError,
    FxPruneError,
    InputsError,
    PlanError,
    PluginError,
    RewriteError,
    SaveError,
    TraceError,
    VerifyError,
)
from fxprune.harm import Sensitivity
from fxprune.plan import Plan, PlanDiff
from fxprune.planner import plan
from fxprune.pruner import Pruner
from fxprune.report import Report, report
from fxprune.rewrite import rewrite
from fxprune.rules.op import coupling
from fxprune.save import load, load_pipeline, save, save_pipeline
from fxprune.schedule import Flow, Problem, Scheduler
from fxprune.score import Scores, score
from fxprune.sensitivity import sensitivity
from fxprune.timesteps import Timesteps
from fxprune.training import Training
from fxprune.verify import verify

__version__ = "0.1.0"
__all__ = [
    "Average",
    "BudgetError",
    "Carry",
    "ChannelGraph",
    "Comparison",
    "CriterionError",
    "Distillation",
    "Draft",
    "Energy",
    "Flow",
    "FxPruneError",
    "Group",
    "InputsError",
    "Plan",
    "PlanDiff",
    "PlanError",
    "PluginError",
    "Problem",
    "Pruner",
    "Report",
    "RewriteError",
    "SaveError",
    "Scheduler",
    "Scores",
    "Sensitivity",
    "Slice",
    "Timesteps",
    "TraceError",
    "Training",
    "VerifyError",
    "apply",
    "calibration",
    "compare",
    "coupling",
    "load",
    "load_pipeline",
    "plan",
    "prune",
    "report",
    "rewrite",
    "save",
    "save_pipeline",
    "score",
    "sensitivity",
    "trace",
    "verify",
]
