"""Coupling rules: how labels flow through each ATen op.

One open table maps an op's name (`"aten::conv2d"`; overloads and in-place forms share a rule) to a function
`rule(op: Op) -> Labels`.  An op without a rule freezes every axis that it touches.  Add one with

    @fxprune.coupling("mylib::my_op")
    def my_op(op):
        return op.labels("x")          # the output's axes carry the input's labels
"""

from fxprune.graph.rules import (  # noqa: F401 - each fills the table
    attention,
    constructors,
    conv,
    elementwise,
    indexing,
    linear,
    norms,
    pieces,
    quantization,
    reductions,
    shapes,
)
from fxprune.graph.rules.op import Labels, Op, Rule, coupling, rule_for

__all__ = ["Labels", "Op", "Rule", "coupling", "rule_for"]
