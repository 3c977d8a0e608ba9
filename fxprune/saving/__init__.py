"""A pruned model as a folder of data, and back: safetensors and JSON, nothing of a folder is run.

In: a model or pipeline.  Out: a folder, written whole or not at all; and the same model from it.  May import
`reporting`, `rewriting` and all before them.
"""
