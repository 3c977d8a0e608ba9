"""fxprune: structural pruning of PyTorch networks, right, general and exact about budgets.

    small = fxprune.prune(model, ratio=0.4)

is five calls in order: `trace` → `score` → `plan` → `rewrite` → `verify`.
"""

from fxprune import pretrained  # noqa: F401 - there diffusers finds, by name, what reads pruned components
from fxprune.api import calibration, prune
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
from fxprune.folders import prune_folder
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group, Slice
from fxprune.graph.rules.op import coupling
from fxprune.planning.budget import Budget
from fxprune.planning.limits import Limits
from fxprune.planning.plan import Draft, Plan
from fxprune.planning.plan_diff import PlanDiff
from fxprune.planning.planner import plan
from fxprune.pruning.prune import apply, trace
from fxprune.reporting.report import Report, report
from fxprune.rewriting.rewrite import rewrite
from fxprune.saving.save import load, load_pipeline, save, save_pipeline
from fxprune.scoring.score import Scores, score
from fxprune.scoring.timesteps import Timesteps
from fxprune.studies.compare import compare
from fxprune.studies.comparison import Comparison
from fxprune.studies.sensitivity import sensitivity
from fxprune.studies.sensitivity_table import Sensitivity
from fxprune.training.average import Average
from fxprune.training.carry_over import Carry
from fxprune.training.distillation import Distillation
from fxprune.training.energy import Energy
from fxprune.training.options import Training
from fxprune.training.pruner import Pruner
from fxprune.training.scheduler import Flow, Problem, Scheduler
from fxprune.verification import verify

__version__ = "0.1.0"
__all__ = [
    "Average",
    "Budget",
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
    "Limits",
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
    "prune_folder",
    "report",
    "rewrite",
    "save",
    "save_pipeline",
    "score",
    "sensitivity",
    "trace",
    "verify",
]
