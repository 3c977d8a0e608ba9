"""The command line: `fxprune prune`, `inspect`, `sensitivity`, `compare`, `list` and `demo`.

A folder is a diffusers pipeline (model_index.json), a diffusers model (config.json) or what `fxprune prune` wrote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fxprune.errors import FxPruneError, InputsError, SaveError

if TYPE_CHECKING:
    from fxprune.graph.channels import ChannelGraph, Group
    from fxprune.planning.plan import Plan
    from fxprune.saving.header import Header
    from fxprune.studies.comparison import Comparison

SHOWN = 20  # rows of a table without --all

app = typer.Typer(
    name="fxprune",
    help="Make a trained network smaller: whole channels, heads and blocks go, a dense model of the same class stays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
out = Console()
err = Console(stderr=True)

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="A diffusers pipeline or model, or a folder that fxprune wrote.")
]


@contextmanager
def _told() -> Iterator[None]:
    """An error of ours as one paragraph, not as a traceback."""
    try:
        yield
    except FxPruneError as e:
        err.print(f"[bold red]{type(e).__name__}:[/] [red]{escape(str(e))}[/]", soft_wrap=True)
        raise typer.Exit(1) from e


def _version(asked: bool) -> None:
    if asked:
        from fxprune import __version__

        out.print(f"fxprune {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only `--version`; the rest are commands."""


# ---- prune ---------------------------------------------------------------------------------------


@app.command()
def prune(
    directory: Folder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="Folder for the result; an earlier result is replaced."),
    ],
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of --of to remove, at least 0 and below 1; 0.4 if nothing else is asked."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="In place of --ratio: what is to stay of --of, such as 20e6 parameters.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="How channels are ranked; see `fxprune list`.")] = "gradflow",
    of: Annotated[str, typer.Option(help="The budget is one of params, macs, channels, memory, latency.")] = "params",
    group_ratio: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Share of its channels that a group (or a glob's) loses; repeatable."),
    ] = None,
    scheduler: Annotated[str, typer.Option(help="When how much goes; see `fxprune list`.")] = "one_shot",
    steps: Annotated[
        int | None,
        typer.Option(help="Train for so many steps, with --data: while channels go, or after a cut at once."),
    ] = None,
    after: Annotated[int, typer.Option(help="Steps of training of the small model, after --steps.")] = 0,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images to train with, for a model that draws pixels.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a step (and process).")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-4,
    ema_decay: Annotated[float | None, typer.Option(help="Save an average of the weights, such as 0.999.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for checkpoints; the same command goes on from them.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw masks, cost and loss of the run.")] = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads, head_dim, or both.")] = "heads",
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor or module to leave whole, or a glob; repeatable.")
    ] = None,
    round_to: Annotated[
        str, typer.Option(metavar="N", help="Keep widths multiples of this; auto: what suits the device.")
    ] = "1",
    min_width: Annotated[int, typer.Option(help="Channels that every group keeps.")] = 1,
    max_ratio: Annotated[
        float | None, typer.Option(help="Largest share that one group of channels may lose (0.9, or all but one).")
    ] = None,
    exact_norms: Annotated[bool, typer.Option("--exact-norms", help="Never regroup a group norm.")] = False,
    scope: Annotated[
        str | None,
        typer.Option(
            help="Rank all channels by what is lost for the cost (knapsack) or by score (global), those of one "
            "structure (isomorphic), or each group alone (local)."
        ),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="What goes: single channels (channel), whole residual branches (block), or both.")
    ] = "channel",
    normalize: Annotated[
        str | None, typer.Option(help="How scores of different groups are made comparable; see fxprune.score.")
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="Times of a diffusion process that count: uniform, snr or threshold.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    seed: Annotated[int, typer.Option(help="For everything drawn at random.")] = 0,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove that the result is right.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than return a traced graph as forward.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Prune the model in DIR, or the backbone of the pipeline in DIR, and save the result in OUT.

    Read the result with fxprune.load(OUT): a model or pipeline of the same class.

    Example: fxprune prune ddpm-cifar10-32 --ratio 0.4 --criterion gradflow -o small
    """
    with _told():
        from fxprune.api import prune as prune_
        from fxprune.saving.folder import claim
        from fxprune.saving.save import save

        claim(output)  # before the work, not after it
        model = _on(_open(directory), device)
        options: dict[str, Any] = {"accelerate": {"cpu": True} if device == "cpu" else {}, "after": after}
        options |= {"learning_rate": learning_rate, "ema_decay": ema_decay, "picture": picture}
        options |= {"mixed_precision": mixed_precision, "checkpoint_dir": checkpoints}
        options |= {"checkpoint_every": checkpoint_every}
        training = _training(steps, options)
        small = prune_(
            model,
            criterion,
            ratio,
            of=of,
            target=target,
            ratios=_shares(group_ratio),
            scheduler=scheduler,
            training=training,
            data=_images(model, data, batch, training),
            attention=attention,
            ignore=tuple(ignore or ()),
            round_to=int(round_to) if round_to.isdecimal() else round_to,
            min_width=min_width,
            max_ratio=max_ratio,
            exact_norms=exact_norms,
            scope=scope,
            granularity=granularity,
            normalize=normalize,  # type: ignore[arg-type]  # score() checks it
            timesteps=timesteps,
            samples=samples,
            seed=seed,
            verify=verify,
            strict=strict,
            progress=not quiet,
        )
        _print_pruned(small)
        save(small, output)
        out.print(f"saved in {escape(str(output))}", highlight=False, soft_wrap=True)


def _shares(given: list[str] | None) -> dict[str, float] | None:
    """NAME=SHARE items as a dict."""
    shares = {}
    for item in given or ():
        name, _, share = item.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError as e:
            raise InputsError(f"--group-ratio {item} is not of the form NAME=SHARE, such as 'mid_block.*=0.1'") from e
    return shares or None


def _open(directory: Path) -> Any:
    """The model or pipeline in a folder."""
    from fxprune.saving import stock
    from fxprune.saving.header import HEADER
    from fxprune.saving.save import load

    if (directory / HEADER).is_file() or not directory.is_dir():
        return load(directory)
    if stock.is_stock_folder(directory):
        return stock.read_folder(directory)
    raise SaveError(
        f"{directory} is neither a diffusers pipeline ({stock.INDEX}), nor a diffusers model ({stock.CONFIG}), nor a "
        f"folder that fxprune wrote ({HEADER})"
    )


def _on(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as e:  # torch's, for a device that is not there
        raise InputsError(f"--device {device} cannot be used: {e}") from e


def _training(steps: int | None, options: dict[str, Any]) -> Any:
    from fxprune.training.options import Training

    return None if steps is None else Training(steps, **options)


def _images(model: Any, folder: Path | None, size: int, training: Any) -> Any:
    """Batches of a folder of images, if there is one."""
    from fxprune.training.images import image_batches

    if (folder is None) != (training is None):
        raise InputsError(
            "--steps and --data go together: the steps to train for, and a folder of images to train with"
        )
    return None if folder is None else image_batches(model, folder, size)


def _print_pruned(small: Any) -> None:
    from fxprune.adapter import find_adapter
    from fxprune.reporting.report import report

    made = report(find_adapter(small).unwrap(small)[0])
    _print_plan(made.plan)
    for check in made.checks:
        out.print(escape(str(check)), highlight=False)
    if made.timing:
        out.print(str(made.timing), highlight=False)
    if made.forward != "module":
        out.print(f"forward: {made.forward} ({escape(made.reason)})", highlight=False)


def _print_plan(plan: Plan) -> None:
    """What goes, measure by measure."""
    title = f"{plan.model}: {plan.achieved:.1%} of {plan.of} go (asked {plan.ratio:.1%}, by {plan.criterion})"
    rows = [(k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in plan.costs.items()]
    _print_table(title, {"": "left", "dense": "right", "pruned": "right", "change": "right"}, rows)
    if plan.blocks:
        out.print(escape(f"blocks: {', '.join(plan.blocks)}"), highlight=False, soft_wrap=True)
    if plan.regrouped:
        out.print(escape(f"regrouped norms: {', '.join(plan.regrouped)}"), highlight=False)


# ---- inspect -------------------------------------------------------------------------------------


@app.command()
def inspect(
    directory: Folder,
    every: Annotated[bool, typer.Option("--all", help="Every group, not only the largest ones.")] = False,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Why this tensor or module is frozen, or what it goes with; repeatable."),
    ] = None,
    attention: Annotated[str, typer.Option(help="What an attention would lose: heads or head_dim.")] = "heads",
) -> None:
    """Show what can be pruned in the model in DIR, what cannot and why, and how it was pruned if it was."""
    with _told():
        from fxprune.adapter import find_adapter
        from fxprune.pruning.prune import trace
        from fxprune.saving.header import HEADER, Saved, read

        saved = read(directory) if (directory / HEADER).is_file() else None
        if saved is not None:
            _print_saved(saved, directory)
        if isinstance(saved, Saved) and saved.config is None:
            out.print("Its class cannot be built from the folder, so its channels are not shown: load it in Python.")
            return
        given = _open(directory)
        graph = trace(find_adapter(given).unwrap(given)[0], attention=attention)
        _print_graph(graph, None if every else SHOWN)
        for name in explain or ():
            out.print(escape(graph.explain(name)), highlight=False, soft_wrap=True)


def _print_saved(saved: Header, directory: Path) -> None:
    """What a folder of ours says of itself."""
    from fxprune.saving.header import Saved, read

    versions = ", ".join(f"{k} {v}" for k, v in saved.versions.items())
    out.print(escape(f"{saved.name}, saved by {versions}"), highlight=False, soft_wrap=True)
    if saved.metrics:
        _print_table("metrics", {"": "left", "value": "right"}, [(k, str(v)) for k, v in saved.metrics.items()])
    if not isinstance(saved, Saved):
        for name in saved.components:
            _print_saved(read(directory / name), directory / name)
    elif saved.plan is None:
        out.print("not pruned")
    else:
        _print_plan(saved.plan)


def _print_graph(graph: ChannelGraph, most: int | None) -> None:
    from fxprune.reporting.report import causes

    total = sum(math.prod(graph.shapes[name]) for name in graph.parameters) + graph.outside
    channels = sum(map(len, graph.groups))
    title = f"{graph.model_class}: {total:,} parameters, {len(graph.groups)} groups of {channels:,} channels"
    costs = sorted(((_per_channel(graph, g), g) for g in graph.groups), key=lambda x: -x[0] * len(x[1]))
    rows = [(g.name, g.kind, f"{len(g):,}", f"{len(g.slices)}", f"{cost:,.0f}") for cost, g in costs]
    columns = {
        "group": "left",
        "unit": "left",
        "channels": "right",
        "tensors": "right",
        "parameters each": "right",
    }
    _print_table(title, columns, rows[:most], left_out=len(rows) - len(rows[:most]))
    _print_blocks(graph, total, most)
    held = [(c.name, f"{c.axes:,}", f"{c.share:.1%}", c.examples[0] if c.examples else "") for c in causes(graph)]
    columns = {"held back by": "left", "axes": "right", "of parameters": "right", "for example": "left"}
    _print_table("What cannot be pruned, or only in part", columns, held)


def _print_blocks(graph: ChannelGraph, total: int, most: int | None) -> None:
    """Residual branches that --granularity block takes out."""
    sizes = [sum(math.prod(graph.shapes[t]) for t in b.tensors if t in graph.parameters) for b in graph.blocks]
    rows = [(b.name, f"{n:,}", f"{n / total:.1%}") for b, n in zip(graph.blocks, sizes, strict=True)]
    columns = {"block": "left", "parameters": "right", "share": "right"}
    if rows:
        _print_table("Blocks that can go whole", columns, rows[:most], left_out=len(rows) - len(rows[:most]))


def _per_channel(graph: ChannelGraph, group: Group) -> float:
    """Parameters that go with one channel of a group, while all others stay."""
    return sum(
        math.prod(graph.shapes[s.tensor]) / graph.shapes[s.tensor][s.axis] * int(s.positions.shape[1])
        for s in group.slices
        if s.tensor in graph.parameters
    )


# ---- sensitivity ---------------------------------------------------------------------------------


@app.command()
def sensitivity(
    directory: Folder,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves, as .png, .svg or .pdf.")] = None,
    criterion: Annotated[str, typer.Option(help="Which channels go first; see `fxprune list`.")] = "magnitude",
    share: Annotated[list[float] | None, typer.Option(help="A share of the channels to remove; repeatable.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor or module to leave whole, or a glob; repeatable.")
    ] = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    seed: Annotated[int, typer.Option(help="For everything drawn at random.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Measure how much the loss of the model in DIR rises when one part after the other loses channels."""
    with _told():
        from fxprune.studies.sensitivity import SHARES
        from fxprune.studies.sensitivity import sensitivity as measure

        table = measure(
            _on(_open(directory), device),
            criterion,
            shares=share or SHARES,
            attention=attention,
            ignore=tuple(ignore or ()),
            samples=samples,
            seed=seed,
            progress=not quiet,
        )
        out.print(escape(repr(table)), highlight=False, soft_wrap=True)
        if csv is not None:
            table.to_csv(csv)
        if plot is not None:
            table.plot(plot)


# ---- compare -------------------------------------------------------------------------------------


@app.command()
def compare(
    directory: Folder,
    criteria: Annotated[
        str, typer.Option(metavar="A,B,...", help="Criteria, see `fxprune list`.")
    ] = "magnitude,taylor,gradflow,random",
    ratios: Annotated[str, typer.Option(metavar="R,R,...", help="Shares of --of to remove.")] = "0.3,0.5",
    seeds: Annotated[int, typer.Option(help="How often, each time with other calibration samples.")] = 1,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for compare.csv and compare.png.")
    ] = Path("compare"),
    of: Annotated[str, typer.Option(help="What the ratios count: params, macs or channels.")] = "params",
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Prune the model in DIR by several criteria and show its loss before any training, and what scoring took.

    Rows that OUT/compare.csv holds already are not made again.

    Example: fxprune compare ddpm-cifar10-32 --criteria magnitude,gradflow --ratios 0.3,0.5 --seeds 3
    """
    with _told():
        from fxprune.studies.compare import compare as compare_

        made = compare_(
            _on(_open(directory), device),
            _listed(criteria),
            [_number(r) for r in _listed(ratios)],
            seeds=seeds,
            of=of,
            attention=attention,
            samples=samples,
            out=output,
            progress=not quiet,
        )
        right = dict.fromkeys(["ratio", "loss", "params gone", "MACs gone", "scored in", "memory"], "right")
        title = f"{made.model}: loss after pruning, without training (dense: {_dense(made)})"
        _print_table(title, {"criterion": "left", **right}, [cells[:-1] for cells in made.summary()])
        for error in dict.fromkeys(f"{row.criterion}: {row.error}" for row in made.rows if row.error):
            err.print(f"[red]{escape(error)}[/]", highlight=False, soft_wrap=True)
        out.print(f"rows and picture in {escape(str(output))}", highlight=False, soft_wrap=True)


def _dense(made: Comparison) -> str:
    return next((f"{row.dense:.4g}" for row in made.rows if row.dense is not None), "?")


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise InputsError(f"--ratios: {text!r} is no number, such as 0.3,0.5") from e


# ---- list, demo ----------------------------------------------------------------------------------


@app.command("list")
def list_() -> None:
    """List criteria, schedulers and adapters: the built-in ones and those of other installed packages."""
    from fxprune import registry

    for kind in registry.KINDS:
        rows = [(p.name, p.package, p.summary) for p in registry.names_with_origin(kind)]
        _print_table(kind, {"name": "left", "package": "left", "": "left"}, rows)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Folder for pictures, table and model.")
    ] = None,
    ratio: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    criterion: Annotated[str | None, typer.Option(help="How channels are ranked; see `fxprune list`.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of fine-tuning.")] = None,
    seed: Annotated[int | None, typer.Option(help="For everything drawn at random.")] = None,
) -> None:
    """Prune a small diffusion model of handwritten digits that ships with the package; takes a few minutes."""
    given = {"output": output, "ratio": ratio, "criterion": criterion, "steps": steps, "seed": seed}
    with _told():
        try:
            from fxprune.demo.run import main as run
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("fxprune"):
                raise
            raise SaveError(f'the demo needs {e.name}: pip install "fxprune[demo]"') from e
        run(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _print_table(title: str, columns: Mapping[str, Any], rows: Iterable[Sequence[str]], left_out: int = 0) -> None:
    out.print(f"[bold]{escape(title)}[/]", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in columns.items():
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
    if left_out:
        out.print(f"... and {left_out} more; --all shows them")
