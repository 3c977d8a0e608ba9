"""From a graph, scores and a budget to a `Plan`: which channels of which group stay.

    scores → removals (steps that keep every constraint) → ranking → search → selection → Plan

In: `ChannelGraph`, `Scores`, `Budget`, `Limits`.  Out: `Plan`, pure data; `Draft` while it is edited by hand.  What a
plan costs is counted in `costs`, a latency is measured.  May import `scoring`, `graph`, `errors`.
"""
