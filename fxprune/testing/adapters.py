"""The laws of adapters."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune import registry
from fxprune.adapter import Adapter
from fxprune.graph.modules import as_inputs, evaluating
from fxprune.pruning.prune import trace
from fxprune.scoring.batches import batch_size
from fxprune.testing.claims import Claims

SAMPLES = 3


def check_adapter(adapter: str | type[Adapter] | Adapter, model: Any) -> None:
    """Check an adapter on a model of its family, or on an object around one such as a pipeline.

    Args:
        adapter: a class that can be called without arguments, an instance, or a registered name.
        model: small and quick, with any weights; is left as it is.

    Raises:
        AssertionError: it breaks a law; names the adapter, its package, and the law.

    >>> import torchvision
    >>> check_adapter("torchvision", torchvision.models.squeezenet1_1(num_classes=3))
    """
    claims = Claims.of("adapters", "adapter", adapter)
    with claims.during("it cannot be made"):
        made = registry.make("adapters", adapter) if isinstance(adapter, str) else adapter
        made = made() if isinstance(made, type) else made
    claims.hold(isinstance(made, Adapter), f"a {type(made).__name__} is no fxprune.adapter.Adapter: inherit from it")
    _check_recognition(claims, made, model)
    with claims.during("unwrap() fails"):
        net, back = made.unwrap(model)
    claims.hold(isinstance(net, nn.Module), f"unwrap() gave a {type(net).__name__} where the module to prune belongs")
    before = {n: t.clone() for n, t in net.state_dict().items()}
    _check_inputs(claims, made, net)
    _check_loss(claims, made, model, net)
    _check_names(claims, made, net)
    _check_config(claims, made, net)
    with claims.during("what unwrap() gave back fails"):
        claims.hold(made.recognises(back(net)), "it does not recognise what unwrap() makes of the module again")
    same = all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    claims.hold(same, "it changed the model's weights or buffers")


def _check_recognition(claims: Claims, adapter: Adapter, model: Any) -> None:
    loaded = set(sys.modules)
    with claims.during("recognises() fails"):
        claims.hold(adapter.recognises(model) is True, f"it does not recognise a {type(model).__name__}")
        claims.hold(adapter.recognises(object()) is False, "it recognises a plain object()")
    new = {name.partition(".")[0] for name in set(sys.modules) - loaded} - {"fxprune"}
    claims.hold(not new, f"recognises() imported {', '.join(sorted(new))}; see fxprune.graph.modules.comes_from")


def _check_inputs(claims: Claims, adapter: Adapter, net: nn.Module) -> None:
    with claims.during("example_inputs() fails"):
        one, two = as_inputs(adapter.example_inputs(net)), as_inputs(adapter.example_inputs(net))
    claims.hold(_equal(one, two), "example_inputs() gives others each time; seed what it draws")
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    elsewhere = [x.device for x in pytree.tree_leaves(one) if isinstance(x, Tensor) and x.device != device]
    claims.hold(not elsewhere, f"example_inputs() are on {elsewhere[:1]}, the model is on {device}")
    with claims.during("the model does not run on example_inputs()"), evaluating(net), torch.no_grad():
        net(*one[0], **one[1])
    with claims.during("the model cannot be traced with example_inputs()"):
        graph = trace(net, one)
    claims.hold(bool(graph.groups), "a trace with example_inputs() finds no channel that could go")


def _check_loss(claims: Claims, adapter: Adapter, model: Any, net: nn.Module) -> None:
    with claims.during("calibration() fails"):
        batches = adapter.calibration(model, SAMPLES, seed=1)
        again = adapter.calibration(model, SAMPLES, seed=1)
    with claims.during("loss_of() fails"):
        loss = adapter.loss_of(model, seed=1)
    if batches is None:
        return
    claims.hold(_equal(batches, again), "calibration() draws others for the same seed")
    total = sum(map(batch_size, batches))
    claims.hold(total in (0, SAMPLES), f"calibration() of {SAMPLES} samples holds {total}")
    if loss is None:
        claims.fail("it makes calibration batches, but no loss for them: loss_of() is None")
    for batch in batches:
        with claims.during("the loss of a calibration batch fails"), evaluating(net):
            values: list[Any] = [loss(net, batch) for _ in range(2)]
        scalar = isinstance(values[0], Tensor) and values[0].numel() == 1 and math.isfinite(float(values[0].detach()))
        claims.hold(scalar, "the loss of a calibration batch is no finite scalar tensor")
        claims.hold(bool(values[0].requires_grad), "the loss of a calibration batch has no gradient")
        claims.hold(bool(torch.equal(*values)), "the loss differs from call to call; draw its noise from a seed")


def _check_names(claims: Claims, adapter: Adapter, net: nn.Module) -> None:
    with claims.during("protect() fails"):
        names = adapter.protect(net)
    known = {n for n, _ in (*net.named_modules(), *net.named_parameters(), *net.named_buffers())}
    odd = [n for n in names if n not in known]
    claims.hold(not odd, f"protect() names {odd[:1]}, which is no tensor or module of the model")


def _check_config(claims: Claims, adapter: Adapter, net: nn.Module) -> None:
    with claims.during("config() fails, or is no JSON data"):
        config = adapter.config(net)
        text = json.dumps(config, allow_nan=False)
    if config is None:
        return
    claims.hold(json.loads(text) == config, "config() does not survive a trip through JSON (tuples, integer keys?)")
    with claims.during("build() fails on what config() gave"):
        built = adapter.build(json.loads(text))
    claims.hold(type(built) is type(net), f"build() made a {type(built).__name__} of a {type(net).__name__}'s config")
    shapes, wanted = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (built, net))
    claims.hold(shapes == wanted, "build() made a model with parameters of other names or shapes")
    claims.hold(all(p.is_meta for p in built.parameters()), "build() must leave parameters on the meta device")


def _equal(a: Any, b: Any) -> bool:
    (x, same), (y, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    pairs = zip(x, y, strict=False)
    return same == other and all(torch.equal(p, q) if isinstance(p, Tensor) else p == q for p, q in pairs)
