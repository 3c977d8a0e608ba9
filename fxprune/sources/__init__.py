"""What users have on disk or on the hub, as what `fxprune` works on: models by name or folder, and files of data.

`fxprune.open_model` and `fxprune.open_data` are the face; what a family of models alone knows, its adapter is asked.
"""
