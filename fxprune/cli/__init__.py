"""The command line: `fxprune prune`, `inspect`, `sensitivity`, `compare`, `list` and `demo`, one file a command.

In comes a folder: a diffusers pipeline (model_index.json), a diffusers model (config.json) or what `fxprune prune`
wrote. Out go tables on the terminal and, where asked, a folder or a file; an error of ours is one red paragraph and
exit code 1. It may import all of fxprune, and nothing of fxprune imports it. At the top of its files stand only typer,
rich and `fxprune.errors`; a command imports inside itself what it computes with, so that `--version` and `--help` load
nothing of the engine beyond what `import fxprune` does.
"""

from fxprune.cli.main import app

__all__ = ["app"]
