"""Soft pruning in the training loops of others, a line each; every module needs its own library.

    transformers    PruningCallback for a Trainer, and soft_pruning(trainer), which scores by the trainer's own loss
    lightning       PruningCallback for a lightning Trainer, and unpruned_to, which makes a module fit a checkpoint
    accelerate      prepared(accelerator, model, optimizer) for a loop of one's own

In all of them the masks move after each step of the optimizer; when the schedule is over, the channels go out of the
very module that trains, and its optimizer goes on.  In: what `Pruner` takes.  May import all but `cli`.
"""
