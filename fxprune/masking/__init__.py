"""Masks over channels, in the graph and on the live model: a channel is gone when nothing reads it.

In: `ChannelGraph`, module, one number a channel.  Out: what the model computes without the masked channels
(`run_masked`), or the module itself reading through masks while it trains (`LiveMasks`).  May import `planning`,
`graph`, `errors`.
"""
