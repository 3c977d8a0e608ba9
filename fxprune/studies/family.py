"""A family of sizes from one run: every model holds the channels of the smaller ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fxprune.adapter import find_adapter
from fxprune.arguments import RATIOS, takes
from fxprune.errors import BudgetError
from fxprune.graph.modules import ExampleInputs
from fxprune.graph.outputs import Wanted
from fxprune.graph.turns import in_turn
from fxprune.planning.budget import Budget
from fxprune.planning.legal import legal_graph
from fxprune.planning.limits import Limits
from fxprune.planning.nested import nested_plans
from fxprune.planning.options import gathered
from fxprune.planning.plan import Plan
from fxprune.planning.selectors import Ignore, named, require_known
from fxprune.pruning.finish import finished
from fxprune.pruning.given import given_to, seeing
from fxprune.pruning.order import Scoring
from fxprune.pruning.prune import settled_on, trace
from fxprune.scoring.batches import require_some
from fxprune.scoring.context import Loss
from fxprune.scoring.score import DEFAULT_CRITERION, Criterion, score
from fxprune.scoring.streaming import as_batches
from fxprune.scoring.timesteps import Timesteps
from fxprune.studies.given import require_free


@dataclass(frozen=True, repr=False)
class Family:
    """Models of several sizes, the largest first.

    Attributes:
        name: class name of the given model.
        models: as `fxprune.prune` gives them; each holds the channels of those after it.
        plans: theirs; each removes all that those before it do.
    """

    name: str
    models: tuple[Any, ...] = field(repr=False)
    plans: tuple[Plan, ...]

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.models)

    def __getitem__(self, index: int) -> Any:
        return self.models[index]

    def __repr__(self) -> str:
        lines = [f"Family of {self.name}, by {self.plans[0].criterion}: each holds the channels of those below it"]
        for plan in self.plans:
            left = ", ".join(f"{k} {after:,.0f} ({after / before:.1%})" for k, (before, after) in plan.costs.items())
            lines.append(f"  asked {plan.ratio:.1%} of {plan.of}: {left}")
        return "\n".join(lines)


@takes(ratios=RATIOS)
def family(
    model: Any,
    ratios: Sequence[float] = (0.2, 0.4, 0.6),
    *,
    of: str = "params",
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    example_inputs: ExampleInputs | None = None,
    outputs: Wanted | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    timesteps: str | Timesteps | None = None,
    attention: str = "heads",
    ignore: Ignore = (),
    round_to: int | str = 1,
    min_width: int = 1,
    max_ratio: float | None = None,
    exact_norms: bool = False,
    scope: str | None = None,
    limits: Limits | None = None,
    samples: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Family:
    """Prune a model to several sizes, of which each is a part of the one before it.

    One trace and one set of scores; every size is proven by itself.

    Args:
        model: as for `fxprune.prune`; it is left as it is.
        ratios: shares of `of` to remove, in (0, 1).
        of: as for `fxprune.prune`.
        criterion: as for `fxprune.prune`; what makes up for channels that go (`obs`) is left out, since the sizes share
            their weights.
        example_inputs: as for `fxprune.prune`.
        outputs: as for `fxprune.prune`.
        data: batches for the criterion; None: the model's adapter makes `samples` of them.
        loss: `loss(model, batch) -> scalar` for the criterion; None: the adapter's.
        timesteps: as for `fxprune.prune`.
        attention: as for `fxprune.prune`: "heads" or "head_dim".
        ignore: as for `fxprune.prune`.
        round_to: as for `fxprune.plan`, a number.
        min_width: as for `fxprune.plan`.
        max_ratio: as for `fxprune.plan`.
        exact_norms: as for `fxprune.plan`.
        scope: as for `fxprune.plan`.
        limits: these in one value, in their place.
        samples: as for `fxprune.prune`.
        seed: as for `fxprune.prune`.
        progress: as for `fxprune.prune`.

    Raises:
        BudgetError: the ratios are out of range, or the largest out of reach; tells how far one can go.
        InputsError: data or a loss are missing.

    Examples:
        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> given = {"criterion": "magnitude", "example_inputs": torch.ones(1, 8), "progress": False}
        >>> made = fxprune.family(net, [0.25, 0.5], **given)
        >>> [small[0].out_features for small in made]
        [24, 16]
    """
    if not len(ratios) or not all(0 < r < 1 for r in ratios):
        raise BudgetError(f"ratios={list(ratios)}: pass shares of {of} to remove, in (0, 1), such as (0.2, 0.4, 0.6)")
    keywords: dict[str, Any] = {"ignore": ignore, "round_to": round_to, "min_width": min_width, "scope": scope}
    limits = gathered(Limits, limits, keywords | {"max_ratio": max_ratio, "exact_norms": exact_norms})
    require_free(limits, "a family")
    sizes = sorted(dict.fromkeys(map(float, ratios)))
    with in_turn:
        adapter = seeing(find_adapter(model), timesteps, loss is None or data is None)
        net, back = adapter.unwrap(model)
        batches = as_batches(data)
        require_some(batches)
        graph = trace(net, example_inputs, attention=attention, outputs=outputs)
        require_known(graph, stay := named(net, limits.ignore))
        limits = replace(limits, ignore=(*stay, *adapter.protect(net)))
        graph = settled_on(legal_graph(graph, limits.legal_for), net, Budget(sizes[-1], of), limits).graph
        seen = Scoring(criterion, data=batches, loss=loss, samples=samples)
        scores = score(graph, net, criterion, **given_to(adapter, model, seen, seed, progress))
        plans = nested_plans(graph, scores, sizes, of, limits)
        small = tuple(back(finished(net, graph, plan, verify=True, strict=False, seed=seed)) for plan in plans)
    return Family(type(net).__name__, small, plans)
