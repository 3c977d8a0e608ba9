"""Depth as a unit of pruning: residual branches that go whole.

blocks   finds them in the traced graph
reduced  the channel graph without some of them
choose   which of them meet a budget
skip     what stands in a module's place once it is gone
install  puts it there
"""
