"""What is told of a pruned model: `Report`, and the `History` of a run.

In: plan, changes, checks.  Out: a report attached to the model.  May import what lies before it on the way of the data,
`adapter` and `verification` included.
"""
