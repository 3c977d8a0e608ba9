"""From an order to a verified dense model: trace, score, plan, rewrite and verify, in one go.

In: a model and an `Order` (budget, limits, scoring, how the result is made).  Out: the smaller model with its report.
Where the module's own Python cannot follow a plan, `realize` plans anew, attempt by attempt, or lets the graph be the
forward.  May import all that lies before it on the way of the data.
"""
