"""`python -m fxprune`: the command line."""

from fxprune.cli import app

app(prog_name="fxprune")
