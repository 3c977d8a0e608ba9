"""Modules whose parameters `fully_shard` (FSDP2) has shared out over processes: put together, and shared out again.

    whole(model)             a copy with every parameter in full, without FSDP; a collective operation
    shard_like(small, model) share out a smaller one as the model is
    laid_out(tensor, like)   a tensor, which every process has in full, placed as another one lies

What FSDP puts on a module is a class, hooks, and marks in its `__dict__`; a copy takes all of these off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from fxprune.arguments import MODULE, takes
from fxprune.errors import InputsError
from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import in_shards, require_whole, sharded

M = TypeVar("M", bound=nn.Module)
MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
COMPOSED = "__composable_api"  # begins the names of the dicts in which torch keeps what was applied to a module
FSDP = "torch.distributed.fsdp"


def full(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; every process must come here in turn."""
    return cast("Any", tensor).full_tensor() if in_shards(tensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has in full, as another one lies: in shards of the same mesh, or in full.

    One of another shape (a row's or a column's sums) is in full on each process of the mesh.
    """
    if not in_shards(like):
        return tensor
    from torch.distributed.tensor import Replicate, distribute_tensor

    lies = cast("Any", like)
    places = lies.placements if tensor.shape == like.shape else [Replicate()] * lies.device_mesh.ndim
    return distribute_tensor(tensor, lies.device_mesh, places, src_data_rank=None)


def everywhere(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has, to be reckoned with together with one that may lie in shards."""
    if not in_shards(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = cast("Any", like).device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def resharded(model: M) -> M:
    """The model with all its parameters in shards: after a forward pass some are whole."""
    if sharded(model):
        for module in model.modules():
            if hasattr(module, "_get_fsdp_state"):
                cast("Any", module).reshard()
    return model


@takes(model=MODULE)
def whole(model: M) -> M:
    """A copy of a model with every parameter in full in each process, and no longer sharded.

    For what needs the weights themselves: tracing, activations, second derivatives, a proof. All processes must call
    it. One that is not sharded is given back as it is.

    Args:
        model: sharded by `fully_shard` (FSDP2); it is left as it is.

    Raises:
        InputsError: it carries a pruner's masks, or its parameters are split in another way.
    """
    return whole_in(model, lambda tensor: tensor.clone()) if sharded(model) else model


def whole_in(model: M, place: Callable[[Tensor], Tensor]) -> M:
    """A whole copy of a model in shards, each of its tensors where `place` puts it, one after the other."""
    require_whole(model, shards=True)
    resharded(model)
    classes = [(m, type(m), _plain(type(m))) for m in model.modules()]
    states: dict[Any, Any] = {id(s): s for s in _states(model)}
    tensors = [*model.parameters(), *model.buffers()]
    instead = [(t, _put_together(t, place)) for t in tensors if in_shards(t)]
    try:
        for m, _, plain in classes:
            m.__class__ = plain
        made = deep_copy(model, [*instead, *((s, s) for s in states.values())])
    finally:
        for m, cls, _ in classes:
            m.__class__ = cls
    for m in made.modules():
        _take_off(m)
    return cast("M", made)


def _put_together(tensor: Tensor, place: Callable[[Tensor], Tensor]) -> Tensor:
    together = place(full(tensor.detach()))
    return nn.Parameter(together, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else together


def class_of(model: nn.Module) -> type[nn.Module]:
    """A model's class, without FSDP's."""
    return _plain(type(model))


def _plain(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that FSDP's was made of."""
    made = next((c for c in cls.__mro__ if any(b.__name__ == "FSDPModule" for b in c.__bases__)), None)
    if made is None:
        return cls
    if made is not cls:
        raise InputsError(f"this {cls.__name__} carries masks: finish() or detach() the pruner that put them on it")
    return cast("type[nn.Module]", cls.__mro__[getattr(cls, "_orig_cls_mro_index", 2)])


def _take_off(module: nn.Module) -> None:
    held = module.__dict__
    for name in MARKS:
        held.pop(name, None)
    for name in [k for k in held if str(k).startswith(COMPOSED)]:
        for of in [of for of in held[name] if getattr(of, "__name__", of) == "fully_shard"]:
            del held[name][of]
        if not held[name]:
            del held[name]
    kinds = [v for k, v in held.items() if "_hooks" in str(k) and isinstance(v, dict)]
    gone = {key for hooks in kinds for key, hook in hooks.items() if _of_fsdp(hook)}
    for hooks in kinds:
        for key in gone & hooks.keys():
            del hooks[key]


def _of_fsdp(hook: Any) -> bool:
    return str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith(FSDP)


# ---- shared out again -----------------------------------------------------------------------------------------------


def _states(model: nn.Module) -> Iterator[Any]:
    """What FSDP keeps for each module that it shards, once."""
    seen: set[int] = set()
    for module in model.modules():
        state = cast("Any", module)._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None
        if state is not None and id(state) not in seen:
            seen.add(id(state))
            yield state


@takes(small=MODULE, model=MODULE)
def shard_like(small: M, model: nn.Module) -> M:
    """Share a model out over processes, in place, as a larger one is: the same modules, mesh and policies.

    Make its optimizer afterwards: `fully_shard` gives a module new parameters. What else has been set on FSDP's modules
    (prefetching, hooks, divisors) is not copied.

    Args:
        small: whole in every process, such as what `prune` made of `model`.
        model: sharded by `fully_shard` (FSDP2).

    Returns:
        `small`.

    Raises:
        InputsError: the model is not sharded, or the small one is already, or cannot be shared out alike.

    Example:
        >>> small = fxprune.prune(model, "taylor", 0.4, data=part, loss=loss)  # doctest: +SKIP
        >>> optimizer = torch.optim.AdamW(fxprune.shard_like(small, model).parameters())  # doctest: +SKIP
    """
    if not sharded(model):
        raise InputsError(f"this {type(model).__name__} is not sharded: pass the one that fully_shard() was called on")
    require_whole(small)
    from torch.distributed.fsdp import fully_shard

    resharded(model)
    names = {id(m): name for name, m in model.named_modules()}
    there = dict(small.named_modules())
    rewritten = "forward" in vars(small)  # its forward reads the tensors of all modules, and calls none
    try:
        for state in reversed(list(_states(model))):
            paths = [names[id(m)] for m in state._modules if names[id(m)] in there]
            if paths and not (rewritten and "" not in paths):
                found = [there[p] for p in paths]
                fully_shard(cast("Any", found if len(found) > 1 else found[0]), **_policies(state, model, small))
    except (AttributeError, NotImplementedError, ValueError, RuntimeError, AssertionError) as e:
        raise InputsError(
            f"this {type(small).__name__} cannot be sharded as the unpruned one is ({type(e).__name__}: {e!s:.200}): "
            "call fully_shard() on it and its modules yourself"
        ) from e
    return small


def _policies(state: Any, model: nn.Module, small: nn.Module) -> dict[str, Any]:
    """The arguments of `fully_shard` that a module was sharded with."""
    # torch 2.11 knows one group of parameters a module, later versions several.
    groups = getattr(state, "_fsdp_param_groups", None)
    group = state._fsdp_param_group if groups is None else next(iter(groups), None)
    mesh = next(cast("Any", p).device_mesh for p in model.parameters() if in_shards(p))
    given: dict[str, Any] = {"mesh": mesh, "mp_policy": state._mp_policy, "shard_placement_fn": _places(model, small)}
    if group is None:
        return given
    after = group.post_forward_mesh_info
    given |= {"mesh": group.mesh_info.mesh, "offload_policy": group.offload_policy}
    if not state._auto_reshard_after_forward:
        alike = after is group.mesh_info or (after is not None and after.mesh == group.mesh_info.mesh)
        given["reshard_after_forward"] = False if after is None else True if alike else after.shard_mesh_size
    whole_there = {n for n, p in model.named_parameters() if not in_shards(p)}
    given["ignored_params"] = {p for n, p in small.named_parameters() if n in whole_there} or None
    return given


def _places(model: nn.Module, small: nn.Module) -> Callable[[nn.Parameter], Any]:
    """Which axis of a parameter is shared out: that of the larger model's, where its size can be divided."""
    lies = {n: cast("Any", p) for n, p in model.named_parameters() if in_shards(p)}
    like = {id(p): lies.get(n) for n, p in small.named_parameters()}

    def place(parameter: nn.Parameter) -> Any:
        old = like.get(id(parameter))
        at = None if old is None else old.placements[-1]
        axis = getattr(at, "dim", 0)
        even = old is not None and not parameter.shape[axis] % old.device_mesh.size(old.device_mesh.ndim - 1)
        return at if axis and even else None

    return place
