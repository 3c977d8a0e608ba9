"""Random networks, criteria, schedulers and budgets: every result is right by other code than made it, or refused.

What is looked at, of every small network:

    plan        every op of the traced graph finds the shapes that it needs, the costs are what is left (`plan_checker`)
    budget      the parameters, counted, and the multiply-accumulates, by torch's own counter, are as few as asked
    slices      where nothing trained: every tensor holds numbers of the original, cut and not changed
    zeros       the original with all that belongs to gone channels set to zero computes the same, in both modes
                (networks whose norms and means would see the zeros are left out)
    proofs      `fxprune.verify` on a fresh trace: the permutation certificate, masked = dense in both modes
    train       a step of training, on a batch of another size
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import networks
import torch
from plan_checker import violations
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fuzz.trials import REFUSED, RIGHT, Outcome, source
from fxprune.errors import BudgetError, FxPruneError
from fxprune.planning.plan import followed

_CRITERIA = """magnitude random taylor gradflow gradflow_preserving fisher snip synflow wanda activation bn_scale lamp
fpgm hrank obs diff_pruning"""
CRITERIA = _CRITERIA.split()
SCHEDULERS = ["one_shot"] * 7 + ["iterative", "soft", "group_lasso"]
STEPS = 40
FAR = {"memory": 0.2}  # a step of these narrow networks may be as large, at its peak larger yet; for others 0.12
FAR_BY_FOURS = 0.2  # where widths are multiples of four, half of most of these layers
NEAR_BY_BLOCKS = 0.6  # of a budget, where whole blocks go and one more would be too many
SEES_ZEROS = {
    "Residual", "CatSkip", "Mlp", "Rms", "SpatialGate", "ChannelConv", "Reparametrized", "Strongest", "Batch",
}  # fmt: skip
ROUNDED = {"Autocast"}  # in bfloat16, where zeros change the order of sums
COMPENSATED = {"obs"}


@dataclass(frozen=True)
class Case:
    """What one trial prunes and how."""

    network: tuple[list[str], list[str], int]
    criterion: str
    scheduler: str
    still: bool  # the learning rate is zero, so that the weights can be compared
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.network} {self.criterion} {self.scheduler} still={self.still} {self.options}"


def drawn(seed: int, number: int) -> Case:
    """The case of a number."""
    r = source(seed, number)
    image = [r.choice(sorted(networks.IMAGE)) for _ in range(r.randint(0, 4))]
    token = [r.choice(sorted(networks.TOKEN)) for _ in range(r.randint(0, 3))]
    scheduler = r.choice(SCHEDULERS)
    options: dict[str, Any] = {"ratio": r.choice([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])}
    options["of"] = r.choice(["params"] * 4 + ["macs", "macs", "channels", "memory"])
    options |= _limits(r)
    if scheduler == "one_shot":
        options |= r.choice([{}, {}, {"granularity": "both"}, {"granularity": "block"}, {"attention": "head_dim"}])
    return Case((image, token, r.randrange(2**16)), r.choice(CRITERIA), scheduler, r.random() < 0.5, options)


def _limits(r: random.Random) -> dict[str, Any]:
    return r.choice([
        {}, {}, {}, {"round_to": r.choice([2, 4])}, {"min_width": 3}, {"max_ratio": 0.6}, {"exact_norms": True},
        {"scope": r.choice(["global", "local", "isomorphic", "knapsack"])}, {"ignore": ["stem"]},
        {"normalize": r.choice(["mean", "max", "standardize", "rank"])},
    ])  # fmt: skip


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.mean((2, 3)).sum(1)[:, None, None]).square().mean()


def pruned(case: Case) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network, the small one, and the example inputs."""
    model, (x,) = networks.build(*case.network)
    data = [torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(i)) for i in range(2)]
    options: dict[str, Any] = dict(case.options)
    if case.scheduler != "one_shot":
        made = (lambda p: torch.optim.SGD(p, 0.0)) if case.still else None
        options["training"] = fxprune.Training(STEPS, optimizer=made, distill=None)
    small = fxprune.prune(
        model, case.criterion, data=data, loss=loss, scheduler=case.scheduler, example_inputs=x, progress=False,
        **options,
    )  # fmt: skip
    return model, small, x


def judged(case: Case) -> tuple[str, str]:
    """The outcome of a case, and a note."""
    try:
        model, small, x = pruned(case)
    except BudgetError as e:
        return REFUSED, f"BudgetError: {e}"
    except FxPruneError as e:
        return ("wrong" if "report this model" in str(e) else REFUSED), f"{type(e).__name__}: {e}"
    except Exception as e:  # noqa: BLE001 - that is what is looked for
        return "raw", f"{type(e).__name__}: {e}"
    try:
        faults = list(_faults(case, model, small, x))
    except Exception as e:  # noqa: BLE001 - a result that cannot be looked at is no right one
        faults = [f"{type(e).__name__}: {e}"]
    return ("wrong", "; ".join(faults)) if faults else (RIGHT, fxprune.report(small).forward)


def campaign(numbers: Iterable[int], seed: int) -> Iterator[Outcome]:
    """A trial a number."""
    for number in numbers:
        case = drawn(seed, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, note = judged(case)
        note = f"{case}: {note}" if outcome != RIGHT else note
        yield Outcome(number, case.scheduler, outcome, note[:2000])


# ---- what is looked at ----------------------------------------------------------------------------------------------


def _faults(case: Case, model: nn.Module, small: nn.Module, x: Tensor) -> Iterator[str]:
    report = fxprune.report(small)
    plans = (*report.earlier, report.plan)
    if small.training:
        yield "the model was in eval mode, the small one is not"
    yield from _budget(case, model, small, plans, x)
    trained = case.scheduler != "one_shot" and not case.still
    if not trained and case.criterion not in COMPENSATED:
        if case.options.get("attention") != "head_dim" and "ShapeScale" not in case.network[0]:  # queries scaled anew
            yield from _sliced(model, small)
        if len(plans) == 1:
            yield from _proved(case, model, small, x)
    yield from _trains(small, x)


def _budget(case: Case, model: nn.Module, small: nn.Module, plans: tuple[Any, ...], x: Tensor) -> Iterator[str]:
    have, had = (sum(p.numel() for p in m.parameters()) for m in (small, model))
    of, asked = case.options["of"], case.options["ratio"]
    if plans[-1].cost("params") != have:
        yield f"the plan says that {plans[-1].cost('params')} parameters stay, {have} do"
    share = {"params": 1 - have / had, "macs": 1 - _macs(small, x) / _macs(model, x)}.get(of, plans[-1].achieved)
    by_blocks = case.options.get("granularity") == "block"
    far = max(FAR.get(of, 0.12), FAR_BY_FOURS if case.options.get("round_to") == 4 else 0.0)
    if share < (asked * NEAR_BY_BLOCKS if by_blocks else asked - far):
        yield f"{asked} of {of} were to go, {share:.3f} did"


def _macs(model: nn.Module, x: Tensor) -> int:
    """An attention counts by its matrix products: torch's counter does not know the CPU's kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


def _sliced(model: nn.Module, small: nn.Module) -> Iterator[str]:
    """Tensors that hold something else than numbers of the original's."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moving = ("running_mean", "running_var", "num_batches_tracked")  # by training
    for name, tensor in {**dict(small.named_parameters()), **dict(small.named_buffers())}.items():
        if name.endswith(moving) or tensor.numel() <= 1:
            continue
        if not torch.isin(tensor, named[name]).all():
            yield f"{name} holds numbers that the original has not"


def _proved(case: Case, model: nn.Module, small: nn.Module, x: Tensor) -> Iterator[str]:
    plan = fxprune.report(small).plan
    graph = fxprune.trace(model, x, attention=plan.traced[0])
    whole = followed(graph, plan)
    if not plan.blocks:
        limits = {k: v for k, v in case.options.items() if k in ("ignore", "min_width", "max_ratio", "exact_norms")}
        yield from violations(whole, plan, **{k: tuple(v) if k == "ignore" else v for k, v in limits.items()})
    if case.scheduler != "one_shot":  # the statistics of batch norms moved
        small = copy.deepcopy(small)
        held = dict(model.named_buffers())
        if any(tuple(b.shape) != tuple(held[n].shape) for n, b in small.named_buffers() if "running" in n):
            return
        for name, buffer in small.named_buffers():
            if "running" in name:
                buffer.copy_(held[name])
    try:
        fxprune.verify(model, small, graph, plan)
    except FxPruneError as e:
        yield f"verify: {e}"
    names = {*case.network[0], *case.network[1]}
    if not plan.blocks and names.isdisjoint(SEES_ZEROS | ROUNDED):
        yield from _by_zeros(model, small, whole, plan, x)


def _by_zeros(model: nn.Module, small: nn.Module, graph: Any, plan: Any, x: Tensor) -> Iterator[str]:
    """A channel of which every weight is zero, those that read it too, gives nothing to anybody."""
    held = copy.deepcopy(model.state_dict())  # no copy of the model: its closures would read the first one's layers
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in graph.groups:
            gone = list(plan.removed.get(group.name, ()))
            for s in group.slices if gone else ():
                at = torch.from_numpy(s.positions[gone].reshape(-1).copy())
                if tensors[s.tensor].is_floating_point():
                    tensors[s.tensor].index_fill_(s.axis, at, 0)
    for training in (False, True):
        if not torch.equal(_run(small, x, training), _run(small, x, training)):
            continue  # a graph's dropout is no module, and draws as its width is; the proofs draw alike
        one, other = (_run(net, x, training) for net in (model, small))
        if float((one - other).abs().max()) > 1e-3 * float(one.abs().max()):
            yield f"zeroed and small differ by {float((one - other).abs().max()):.2e} (training={training})"
    model.load_state_dict(held)


def _run(net: nn.Module, x: Tensor, training: bool) -> Tensor:
    net = copy.deepcopy(net).train(training)
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    with torch.no_grad():
        return net(x)  # type: ignore[no-any-return]


def _trains(small: nn.Module, x: Tensor) -> Iterator[str]:
    if any(m._forward_pre_hooks or m._forward_hooks for m in small.modules() if not hasattr(m, "parametrizations")):
        yield "hooks are left on the small network"
    small = copy.deepcopy(small).train()
    batch = torch.cat([x, x[:1]])
    value = small(batch).square().mean()
    value.backward()
    if not torch.isfinite(value) or not all(p.grad is None or p.grad.isfinite().all() for p in small.parameters()):
        yield "loss or gradients are not finite"
