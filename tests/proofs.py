"""Both proofs for a model and a plan of random scores."""

from typing import Any

import numpy as np
from torch import nn

import fxprune
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.masking.live import LiveMasks
from fxprune.reporting.report import reductions
from fxprune.rewriting.rewrite import rewrite
from fxprune.verification import check_dense, check_permutation


def proved(model: nn.Module, inputs: Any, ratio: float = 0.3) -> tuple[str, ...]:
    """Both proofs for a plan of random scores, the module's own forward, and live masks; what is reduced."""
    graph = analyse(model.eval(), as_inputs(inputs))
    assert check_permutation(model, graph).ok
    rng = np.random.default_rng(0)
    plan = fxprune.plan(graph, {g.name: rng.random(len(g)) for g in graph.groups}, ratio)
    assert plan.achieved > 0.8 * ratio
    small = rewrite(model, graph, plan).model
    assert (check := check_dense(model, small, graph, plan)).ok, check
    masks = LiveMasks(model, graph)
    assert not masks.held
    masks.detach()
    return reductions(graph, plan)
