"""Pruning criteria, one a file: how much a channel matters.

A criterion gives every channel one number; the lowest are pruned first. It scores and never changes a model. The
folder stands at the top of the repository and is imported as ``fxprune.criteria``. Nothing is imported here: criteria
are found by name through the entry point group ``fxprune.criteria``, the built-in ones just as a third party's.
"""
