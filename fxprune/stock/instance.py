"""The class's own instance of a config, with the weights that stay, and the proof that it is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from fxprune.errors import VerifyError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools, Ints
from fxprune.planning.cost_model import CostModel
from fxprune.planning.costs.polynomials import Floats
from fxprune.planning.plan import Plan, with_blocks
from fxprune.planning.search import Cut
from fxprune.rewriting.scales import scale_folds
from fxprune.rewriting.slicing import FOLDED, cut_tensors, temperature_folds
from fxprune.stock.channels import Gone, chosen
from fxprune.stock.entries import Changes, edited, get, told
from fxprune.stock.integers import require_integers
from fxprune.stock.layers import Renamed
from fxprune.stock.oracle import Oracle, Refusal, named_tensors, silenced
from fxprune.stock.tables import computed, forced
from fxprune.verification import Check, check_dense, check_training


@dataclass(frozen=True)
class Asked:
    """What a plan records of the order: the share of a cost that was asked for, and what scored the channels."""

    ratio: float
    of: str
    criterion: str
    scores: Mapping[str, Floats] = field(repr=False)
    exact: bool = False


@dataclass(frozen=True)
class Instance:
    """A plain instance of the class, the plan it came from, its proofs, and what could shrink in which steps."""

    model: nn.Module
    plan: Plan
    checks: tuple[Check, ...] = ()
    steps: tuple[str, ...] = ()


def instance(
    net: nn.Module, oracle: Oracle, changes: Changes, asked: Asked, gone: Gone | None = None
) -> Instance | Refusal:
    """The constructor's model of a config with some entries changed, which computes what the masked model computes.

    Args:
        gone: the channels of every group that go; None: those with the lowest scores.
    """
    widths = oracle.widths(changes)
    if isinstance(widths, Refusal):
        return widths
    graph = oracle.graph
    made = _built(net, oracle, changes)
    stay = forced(graph, net, made)
    if isinstance(stay, Refusal):
        return stay
    going = chosen(graph, widths, asked.scores, stay, asked.exact) if gone is None else gone
    if isinstance(going, Refusal):
        return going
    plan = planned(oracle, changes, going, asked)
    keep = plan.kept(oracle.whole)
    if not oracle.names and (refused := require_integers(made, graph, plan, keep)) is not None:
        return refused
    if isinstance(refused := load(net, made, oracle, keep), Refusal):
        return refused
    small = Renamed(made, oracle.names) if oracle.names else made
    for fold in temperature_folds(graph, keep):
        fold.apply(small)
    _remember(made, small, oracle.names)
    checks = proofs(net, small, oracle.whole, plan)
    if not isinstance(checks, Refusal) and all(c.ok for c in checks):
        return Instance(made, plan, checks)
    folds = scale_folds(graph, small, keep)
    for fold in folds or ():
        fold.apply(small)
    _remember(made, small, oracle.names)
    checks = proofs(net, small, oracle.whole, plan) if folds else checks
    if isinstance(checks, Refusal):
        return checks
    wrong = next((c for c in checks if not c.ok), None)
    return Instance(made, plan, checks) if wrong is None else Refusal(f"the shapes fit, but {wrong}", compared=True)


def _remember(made: nn.Module, small: nn.Module, names: Mapping[str, str]) -> None:
    """Note the factors that rows of weights hold, by the names that these have now."""
    if made is not small and FOLDED in vars(small):
        now = {old: new for new, old in names.items()}
        vars(made)[FOLDED] = {now.get(name, name): rows for name, rows in vars(small)[FOLDED].items()}


def proofs(net: nn.Module, made: nn.Module, graph: ChannelGraph, plan: Plan) -> tuple[Check, ...] | Refusal:
    """Masked = stock, in train mode too where that differs."""
    try:
        return (check_dense(net, made, graph, plan), *check_training(net, made, graph, plan))
    except VerifyError as e:
        return Refusal(str(e), compared=True)


def planned(oracle: Oracle, changes: Changes, gone: Gone, asked: Asked) -> Plan:
    """The plan that takes such channels, with the entries of the config that change."""
    graph = oracle.graph
    pairs = np.array([(g, c) for g, channels in gone.items() for c in channels], np.int64).reshape(-1, 2)
    removed = np.bincount(pairs[:, 0], minlength=len(graph.groups)).astype(float)
    costs = CostModel(graph)
    share = 1 - costs.of(asked.of, removed) / costs.of(asked.of, np.zeros(len(graph.groups)))
    plan = Plan.of_cut(costs, Cut(pairs[:, 0], pairs[:, 1], removed, share), asked.ratio, asked.of, asked.criterion)
    entries = {path: (get(oracle.constructor.config, path), value) for path, value in changes.items()}
    entries |= {path: (value, value) for path, value in oracle.needed(changes).items()}
    config = {told(path): values for path, values in {**oracle.before, **entries}.items()}
    return replace(with_blocks(oracle.whole, plan, oracle.blocks), config=config, ratio=asked.ratio)


# ---- weights ----------------------------------------------------------------------------------------------------


def _built(net: nn.Module, oracle: Oracle, changes: Changes) -> nn.Module:
    """What the constructor makes, on the device and in the mode of the given model."""
    with torch.random.fork_rng(devices=[]), silenced():
        made = oracle.constructor.build(edited(oracle.constructor.config, changes))
    modes = {path: module.training for path, module in net.named_modules(remove_duplicate=False)}
    for path, module in made.named_modules(remove_duplicate=False):
        module.training = modes.get(path, net.training)
    return made


def load(net: nn.Module, made: nn.Module, oracle: Oracle, keep: Bools) -> Refusal | None:
    """Give a model the weights of another that stay, strictly: the same names, the shapes of what stays."""
    cut = {id(old): new for old, new in cut_tensors(net, oracle.graph, keep)}
    copies: dict[int, torch.Tensor] = {}
    held, state = dict(named_tensors(net)), {}
    own = held | {name: held[old] for name, old in oracle.names.items()}
    for name, new in made.state_dict(keep_vars=True).items():
        if name not in own:
            return Refusal(f"{name} appears")
        old = own[name]
        if id(old) not in copies:
            copies[id(old)] = cut.get(id(old)) if id(old) in cut else _same(old, new)  # type: ignore[assignment]
        state[name] = copies[id(old)]
        if state[name].shape != new.shape:
            return Refusal(f"{name} is of shape {tuple(new.shape)}, what stays of it {tuple(state[name].shape)}")
    made.load_state_dict(state, strict=True, assign=True)
    for name, tensor in made.named_parameters():
        tensor.requires_grad_(own[name].requires_grad)
    for name, buffer in computed(made).items():
        owner, _, leaf = name.rpartition(".")
        if name in own:
            setattr(made.get_submodule(owner), leaf, buffer.to(own[name].device, own[name].dtype))
    return None


def _same(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A copy; of what nothing reads, as much as there is room for."""
    data = old.detach()
    if data.shape != new.shape and data.dim() == new.dim():
        data = data[tuple(slice(0, n) for n in new.shape)]
    data = data.clone()
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def lost(oracle: Oracle, widths: Ints) -> Floats:
    """Channels that every group loses."""
    out: Floats = (oracle.sizes - widths).astype(float)
    return out
