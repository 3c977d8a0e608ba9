"""Pruning schedulers, one a file: when to prune, and how far at each step.

A scheduler shares the budget out over time; it never changes a model, which is the rewriter's task alone. The folder
stands at the top of the repository and is imported as ``fxprune.schedulers``. Nothing is imported here: schedulers are
found by name through the entry point group ``fxprune.schedulers``, the built-in ones just as a third party's.
"""
