"""Pruning while a model trains: schedulers, masks that move, and what training holds beside the weights.

In: a model, batches, a loss, a scheduler.  Out: the smaller trained model, its optimizer and averages cut alike.
`Pruner` serves a loop of the caller's own, `run` is a whole loop (accelerate), resumable from `checkpoints`.  May
import `pruning` and all before it.
"""
