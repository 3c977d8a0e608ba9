"""The commands, in the order of the help; imports nothing, so that the help is quick."""

from __future__ import annotations

# Name -> the first line of the command's own help; its function and module are called alike (`list_` in `list`).
COMMANDS = {
    "prune": "Prune MODEL, or the backbone of a pipeline, and save the result in the folder OUT.",
    "inspect": "Show what can be pruned in MODEL, what cannot and why, and how it was pruned if it was.",
    "plan": "Write down what `prune` would take of MODEL, as a plan to look at, to edit and to apply.",
    "apply": "Carry out a plan on MODEL: the one it was made for, or other weights of it; save the result in OUT.",
    "verify": "Prove that MODEL is right: with --dense, that it computes what the dense model with masks computes.",
    "report": "Write a page that tells what was pruned in DIR, and why; no model is built for it.",
    "sample": "Draw images with the pipeline in MODEL into one picture, or let a language model go on from a prompt.",
    "export": "Write MODEL, or the backbone of a pipeline, as a file for torch.export or ONNX, and compare the two.",
    "sensitivity": "Measure how much the loss of MODEL rises when one part after the other loses channels.",
    "compare": "Prune MODEL by several criteria; show its loss, before any training or after it, and its speed.",
    "list": "List criteria, schedulers and adapters: the built-in ones and those of other installed packages.",
    "demo": "Prune a small diffusion model of handwritten digits that ships with the package; takes a few minutes.",
}
