"""The command line: `fxprune prune`, `inspect`, `report`, `sensitivity`, `compare`, `list`, `demo`: one file a command.

In comes a folder: a diffusers pipeline (model_index.json), a diffusers model (config.json) or what `fxprune prune`
wrote. Out go tables on the terminal and, where asked, a folder or a file; an error of ours is one red paragraph and
exit code 1. It may import all of fxprune, and nothing of fxprune imports it.
"""

from fxprune.cli.main import app

__all__ = ["app"]
