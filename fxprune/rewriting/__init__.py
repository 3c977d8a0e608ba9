"""From a model and a plan to a dense model of the same class.

    slicing (tensors) → attributes (integers follow) → blocks (`Skip` where a branch was) → or the graph as the forward

In: module, `ChannelGraph`, `Plan`.  Out: `Rewritten`; the given module stays.  `compensation` gives weights that make
up for what goes.  May import `planning`, `scoring`, `graph`, `errors`.
"""
