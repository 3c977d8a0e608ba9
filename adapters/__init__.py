"""Adapters, one a file: what a family of models needs to be known about it.

An adapter recognises its family and supplies what a graph cannot show: example inputs, a loss, calibration batches,
names to protect, attributes to update, and how to save and load. The folder stands at the top of the repository and is
imported as ``fxprune.adapters``. Nothing is imported here: adapters are found by name through the entry point group
``fxprune.adapters``, the built-in ones just as a third party's.
"""
