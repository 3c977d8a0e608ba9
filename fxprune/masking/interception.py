"""A module's class exchanged for one that reads its weights, and makes its own calls, through masks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.graph.modules import in_shards
from fxprune.masking.sites import FAMILIES, CallSite
from fxprune.masking.statistics import (
    kept_pairs,
    masked_batch_norm,
    masked_extreme,
    masked_filter,
    masked_group_norm,
    masked_layer_norm,
    masked_mean,
    masked_observation,
    masked_range,
    masked_softmax,
    masked_spread,
)
from fxprune.scoring.observation import stands_for

Arguments: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
KEY = "_fxprune"


@dataclass(eq=False)
class Switch:
    """What all sites share: whether every mask is one, and whether gradients pass the masks as if they were."""

    neutral: bool = True
    straight_through: bool = False


@dataclass(eq=False)
class MaskedAxis:
    """The mask of one axis, a view of the buffer that `LiveMasks` fills; `full` while it is all ones."""

    dim: int
    value: Tensor
    full: bool = True

    def along(self, x: Tensor) -> Tensor:
        """Broadcastable to x, in its type."""
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return self.value.to(device=x.device, dtype=x.dtype).view(shape)


@dataclass(eq=False)
class Site:
    axes: list[MaskedAxis]
    switch: Switch

    @property
    def full(self) -> bool:
        if torch.compiler.is_compiling():  # one guard for the whole model
            return self.switch.neutral
        return all(a.full for a in self.axes)

    def mask(self, x: Tensor) -> Tensor:
        """The product of the masks of all axes, broadcastable to x."""
        out = self.axes[0].along(x)
        for a in self.axes[1:]:
            out = out * a.along(x)
        return out

    def apply(self, x: Tensor) -> Tensor:
        """x times its mask; shards are no weight at work, and FSDP wants the very parameter that it put there."""
        if self.full or in_shards(x):
            return x
        y = x * self.mask(x)
        y = x + (y - x).detach() if self.switch.straight_through else y
        if not torch.compiler.is_compiling():
            stands_for(y, x)
        return y


@dataclass(eq=False)
class MaskedCall(Site):
    site: CallSite

    def masked(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, the one that is a site times its mask."""
        named, at = _nth_tensor(func, args, kwargs, self.site.argument)
        y = self.apply(kwargs[at] if named else args[at])
        return (args, {**kwargs, at: y}) if named else ((*args[:at], y, *args[at + 1 :]), kwargs)


def _run(calls: list[MaskedCall], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call `func` with its arguments, or its statistics, masked."""
    for call in calls:
        if call.site.statistic:
            named, at = _nth_tensor(func, args, kwargs, call.site.argument)
            return _STATISTICS[call.site.family](call, kwargs[at] if named else args[at], func, args, kwargs)
        args, kwargs = call.masked(func, args, kwargs)
    return func(*args, **kwargs)


def _nth_tensor(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> tuple[bool, Any]:
    """Where the n-th tensor argument stands: (False, position) or (True, keyword)."""
    places = [(False, i) for i, a in enumerate(args) if isinstance(a, Tensor)]
    places += [(True, k) for k, a in kwargs.items() if isinstance(a, Tensor)]  # type: ignore[misc]
    return places[n]


@dataclass(eq=False)
class HeldSites:
    """What a masked module carries."""

    weights: dict[str, Site] = field(default_factory=dict)
    calls: dict[tuple[str, int], list[MaskedCall]] = field(default_factory=dict)


@functools.cache
def masked_class(cls: type[nn.Module], weights: tuple[str, ...], calls: bool) -> type[nn.Module]:
    """A class like `cls` whose weights come out masked, and whose forward masks its own calls."""
    space: dict[str, Any] = {name: _masked(name) for name in weights}
    if issubclass(cls, nn.RNNBase) and weights:
        space["_flat_weights"] = property(lambda self: [getattr(self, n) for n in self._flat_weights_names], _ignore)
    if calls:
        norm = next((run for own, run in _NORMS.items() if getattr(cls, "forward", None) is own.forward), None)
        space["forward"] = norm or _intercepting(cls)
    return type(cls.__name__, (cls,), {**space, "__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _ignore(module: nn.Module, value: Any) -> None:
    """RNNs refresh their list of weights when they move; ours is always fresh."""


def _masked(name: str) -> property:
    def get(self: nn.Module) -> Tensor:
        value = self._parameters[name] if name in self._parameters else self._buffers[name]
        assert value is not None
        site: Site = self.__dict__[KEY].weights[name]
        return site.apply(value)

    return property(get)


def _group_norm_module(self: nn.GroupNorm, x: Tensor) -> Tensor:
    site = _only(self)
    if site.full:
        return nn.GroupNorm.forward(self, x)
    return _wide(
        x,
        lambda y, w, b: masked_group_norm(y, site.axes[0].along(y).flatten(), self.num_groups, w, b, self.eps),
        self.weight,
        self.bias,
    )


def _layer_norm_module(self: nn.LayerNorm, x: Tensor) -> Tensor:
    site = _only(self)
    if site.full:
        return nn.LayerNorm.forward(self, x)
    dims = tuple(range(x.dim() - len(self.normalized_shape), x.dim()))
    return _wide(x, lambda y, w, b: masked_layer_norm(y, dims, site.mask(y), w, b, self.eps), self.weight, self.bias)


def _rms_norm_module(self: nn.RMSNorm, x: Tensor) -> Tensor:
    site = _only(self)
    if site.full:
        return nn.RMSNorm.forward(self, x)
    dims = tuple(range(x.dim() - len(self.normalized_shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
    return _wide(
        x, lambda y, w, b: masked_layer_norm(y, dims, site.mask(y), w, b, eps, centred=False), self.weight, None
    )


_NORMS: dict[type[nn.Module], Any] = {
    nn.GroupNorm: _group_norm_module,
    nn.LayerNorm: _layer_norm_module,
    nn.RMSNorm: _rms_norm_module,
}


def _only(module: nn.Module) -> MaskedCall:
    ((site,),) = module.__dict__[KEY].calls.values()
    return site  # type: ignore[no-any-return]


def _wide(x: Tensor, norm: Any, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A norm in float32 at least, its result in the type of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        w, b = (None if p is None else p.to(wide) for p in (weight, bias))
        out: Tensor = norm(x.to(wide), w, b)
    return out.to(x.dtype)


_FRAMES: list[_Frame] = []


class _Frame(TorchFunctionMode):
    """One run of a module's forward: counts the calls that it makes itself, and masks those that are sites."""

    def __init__(self, calls: Mapping[tuple[str, int], list[MaskedCall]]) -> None:
        super().__init__()
        self.calls, self.seen = calls, Counter[str]()

    def __enter__(self) -> _Frame:
        _FRAMES.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        _FRAMES.pop()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        family = FAMILIES.get(getattr(func, "__name__", ""))
        if family is None or _FRAMES[-1] is not self:
            return func(*args, **(kwargs or {}))
        calls = [c for c in self.calls.get((family, self.seen[family]), ()) if not c.full]
        self.seen[family] += 1
        return _run(calls, func, args, kwargs or {})


def _intercepting(cls: type[nn.Module]) -> Any:
    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls = self.__dict__[KEY].calls
        if all(c.full for site in calls.values() for c in site):
            return cls.forward(self, *args, **kwargs)
        with _Frame(calls):
            return cls.forward(self, *args, **kwargs)

    return forward


def _option(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return kwargs.get(name, args[position] if len(args) > position else default)


def _layer(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    shape = _option(args, kwargs, 1, "normalized_shape")
    rms = call.site.family == "rms_norm"
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    weight, bias = _option(args, kwargs, 2, "weight"), None if rms else _option(args, kwargs, 3, "bias")
    eps = _option(args, kwargs, 3 if rms else 4, "eps")
    eps = (torch.finfo(x.dtype).eps if rms else 1e-5) if eps is None else eps
    return _wide(x, lambda y, w, b: masked_layer_norm(y, dims, call.mask(y), w, b, eps, not rms), weight, bias)


def _group(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    groups, eps = _option(args, kwargs, 1, "num_groups"), _option(args, kwargs, 4, "eps", 1e-5)
    weight, bias = _option(args, kwargs, 2, "weight"), _option(args, kwargs, 3, "bias")
    return _wide(
        x, lambda y, w, b: masked_group_norm(y, call.axes[0].along(y).flatten(), groups, w, b, eps), weight, bias
    )


def _batch(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    weight, bias = _option(args, kwargs, 3, "weight"), _option(args, kwargs, 4, "bias")
    eps = _option(args, kwargs, 7, "eps", 1e-5)
    return _wide(x, lambda y, w, b: masked_batch_norm(y, call.mask(y), w, b, eps), weight, bias)


def _reduce(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    family, m = call.site.family, call.mask(x)
    if family in ("sum", "norm"):  # a normalised x has zeros where it is masked: its readers are masked anyway
        return func(x * m, *args[1:], **kwargs)
    dim = _option(args, kwargs, 1, "dim")
    dims = tuple(range(x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    keep = bool(kwargs.get("keepdim", False) or (len(args) > 2 and family == "mean" and args[2]))
    if family == "mean":
        return masked_mean(x, dims, m, keep)
    correction = kwargs.get("correction", int(bool(kwargs.get("unbiased", True))))
    return masked_spread(family, x, dims, m, correction, keep)


def _extreme(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    y = masked_extreme(call.site.family, x, call.mask(x))
    named, at = _nth_tensor(func, args, kwargs, call.site.argument)
    return func(*args, **{**kwargs, at: y}) if named else func(*args[:at], y, *args[at + 1 :], **kwargs)


def _topk(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    y = masked_extreme("amax" if _option(args, kwargs, 3, "largest", True) else "amin", x, call.mask(x))
    return func(y, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


def _range(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rest = {k: v for k, v in kwargs.items() if k != "input"}
    return masked_range(lambda y: func(y, *args[1:], **rest), x, call.mask(x))


def _softmax(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    y = x if kwargs.get("dtype") is None else x.to(kwargs["dtype"])
    return masked_softmax(y, call.axes[0].dim, call.mask(y), func.__name__.startswith("log"))


def _filter(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    weight, bias = _option(args, kwargs, 1, "weight"), _option(args, kwargs, 2, "bias")
    dilation = _option(args, kwargs, 5, "dilation", 1)
    most = dilation if isinstance(dilation, int) else max(dilation)
    return masked_filter(x, call.axes[0].dim, call.mask(x), weight.flatten(), bias, most)


def _observed(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    masks = {a.dim: a.value.to(x.device) for a in call.axes}
    return masked_observation(functools.partial(func, **kwargs), x, masks, args[1], args[2:])


def _distance(call: MaskedCall, x: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    a, b = (_option(args, kwargs, k, name) for k, name in enumerate(("x1", "x2")))
    rest = {k: v for k, v in kwargs.items() if k not in ("x1", "x2")}
    return func(*kept_pairs(a, b, call.mask(x)), *args[2:], **rest)  # type: ignore[no-any-return]


_STATISTICS: dict[str, Any] = {
    **dict.fromkeys(("amax", "amin", "max", "min", "logsumexp", "prod"), _extreme),
    "aminmax": _range,
    "topk": _topk,
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **{f"conv{k}d": _filter for k in (1, 2, 3)},
    "fused_moving_avg_obs_fake_quant": _observed,
    "pairwise_distance": _distance,
    "layer_norm": _layer,
    "rms_norm": _layer,
    "group_norm": _group,
    "batch_norm": _batch,
    **dict.fromkeys(("mean", "sum", "var", "std", "var_mean", "std_mean", "norm"), _reduce),
}
