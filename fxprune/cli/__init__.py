"""The command line: `fxprune prune`, `inspect`, `plan`, `apply`, and so on: one file a command.

In comes a model, as `fxprune.open_model` takes it: a folder, a name on the hub, or an architecture.  Out go tables on
the terminal or JSON, and, where asked, a folder or a file; an error of ours is one red paragraph and exit code 1.
`options.py` says what the commands share, `config.py` what all have.  It may import all of fxprune, and nothing of
fxprune imports it.
"""

from fxprune.cli.main import app

__all__ = ["app"]
