"""What is left of parameters, MACs, channels and memory when groups lose channels; tables and clocks for times.

In: `ChannelGraph`.  Out: numbers for any count of channels that every group loses.  May import `graph`, `errors`.
"""
