"""The names that `fxprune` offers and where they come from: what `__init__.py` imports, each when it is asked for."""

from .api import (
    calibration as calibration,
)
from .api import (
    prune as prune,
)
from .api import (
    trajectory_loss as trajectory_loss,
)
from .errors import (
    BudgetError as BudgetError,
)
from .errors import (
    CriterionError as CriterionError,
)
from .errors import (
    FxPruneError as FxPruneError,
)
from .errors import (
    InputsError as InputsError,
)
from .errors import (
    PlanError as PlanError,
)
from .errors import (
    PluginError as PluginError,
)
from .errors import (
    RewriteError as RewriteError,
)
from .errors import (
    SaveError as SaveError,
)
from .errors import (
    TraceError as TraceError,
)
from .errors import (
    VerifyError as VerifyError,
)
from .folders import prune_folder as prune_folder
from .graph.channels import ChannelGraph as ChannelGraph
from .graph.groups import (
    Group as Group,
)
from .graph.groups import (
    Slice as Slice,
)
from .graph.parts import parts as parts
from .graph.rules.op import coupling as coupling
from .graph.sharding import (
    shard_like as shard_like,
)
from .graph.sharding import (
    whole as whole,
)
from .planning.budget import Budget as Budget
from .planning.limits import Limits as Limits
from .planning.plan import (
    Draft as Draft,
)
from .planning.plan import (
    Plan as Plan,
)
from .planning.plan_diff import PlanDiff as PlanDiff
from .planning.planner import plan as plan
from .pruning.prune import (
    apply as apply,
)
from .pruning.prune import (
    trace as trace,
)
from .reporting.report import (
    Report as Report,
)
from .reporting.report import (
    report as report,
)
from .rewriting.rewrite import rewrite as rewrite
from .saving.save import (
    load as load,
)
from .saving.save import (
    load_pipeline as load_pipeline,
)
from .saving.save import (
    save as save,
)
from .saving.save import (
    save_pipeline as save_pipeline,
)
from .scoring.score import (
    Scores as Scores,
)
from .scoring.score import (
    score as score,
)
from .scoring.timesteps import Timesteps as Timesteps
from .sources.data import Data as Data
from .sources.data import open_data as open_data
from .sources.models import open_model as open_model
from .studies.compare import compare as compare
from .studies.comparison import Comparison as Comparison
from .studies.family import Family as Family
from .studies.family import family as family
from .studies.search import search as search
from .studies.search_table import Search as Search
from .studies.sensitivity import sensitivity as sensitivity
from .studies.sensitivity_table import Sensitivity as Sensitivity
from .training.average import Average as Average
from .training.carried import carry_over as carry_over
from .training.carry_over import Carry as Carry
from .training.distillation import Distillation as Distillation
from .training.energy import Energy as Energy
from .training.options import Training as Training
from .training.pruner import Pruner as Pruner
from .training.scheduler import (
    Flow as Flow,
)
from .training.scheduler import (
    Problem as Problem,
)
from .training.scheduler import (
    Scheduler as Scheduler,
)
from .verification import verify as verify

__version__: str
__all__ = [
    "Average",
    "Budget",
    "BudgetError",
    "Carry",
    "ChannelGraph",
    "Comparison",
    "CriterionError",
    "Data",
    "Distillation",
    "Draft",
    "Energy",
    "Family",
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
    "Search",
    "Sensitivity",
    "Slice",
    "Timesteps",
    "TraceError",
    "Training",
    "VerifyError",
    "apply",
    "calibration",
    "carry_over",
    "compare",
    "coupling",
    "family",
    "load",
    "load_pipeline",
    "open_data",
    "open_model",
    "parts",
    "plan",
    "prune",
    "prune_folder",
    "report",
    "rewrite",
    "save",
    "save_pipeline",
    "score",
    "search",
    "sensitivity",
    "trace",
    "trajectory_loss",
    "verify",
]
