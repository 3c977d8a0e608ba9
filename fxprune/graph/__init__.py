"""From a module and example inputs to a `ChannelGraph`: which positions of which tensors form one channel.

    trace (torch.export, integers with their provenance) → rules (labels of every axis, one rule an op)
          → equations (what the module's Python needs) → labels resolved → groups of channels

In: a module and inputs.  Out: `ChannelGraph`, which answers questions (`explain`, `frozen`), knows its residual blocks,
and becomes a runnable `Program` for any set of channels that stays.  May import `errors` only.
"""
