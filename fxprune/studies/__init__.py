"""Measurements without training: how much each part minds losing channels, and criteria side by side.

In: a model, criteria, data.  Out: `Sensitivity`, `Comparison`, as tables, CSV and pictures.  May import `pruning` and
all before it.
"""
