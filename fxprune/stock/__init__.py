"""Shapes that a class's own constructor can make: `shape="stock"`.

    config entries → ties (entries that can shrink, with a proof) → search → Plan → a plain instance, loaded strictly

In: a module, its `Constructor`, its `ChannelGraph`, scores and a budget.  Out: a `Plan` with the entries that change,
and the class's own instance with the weights that stay.  The constructor is the oracle: it is built on the meta device
with entries changed, and every width is read off its shapes.  Shapes alone accept wrong models, so each tie is proven:
masked = stock.  May import `verification`, `rewriting`, `planning` and what comes before them.
"""
