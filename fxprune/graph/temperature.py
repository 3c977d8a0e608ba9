"""The softmax temperature of an attention, and the weights that set it.

`scaled_dot_product_attention` without an explicit scale divides by sqrt(head_dim).  When head_dim shrinks, the softmax
would get another temperature; multiplying the query's rows by sqrt(new / old) keeps it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from fxprune.graph.rules.op import Attended, shape_of
from fxprune.graph.scales import Rows, foldable
from fxprune.graph.trace import Traced


def temperature_rows(
    traced: Traced, parameters: Container[str], attended: Iterable[Attended], name: str
) -> list[Rows] | None:
    """The rows of parameters to multiply for another temperature of an attention; None where there are none.

    Attentions that share its query (text and image of an IP-Adapter) have heads as wide, and want the same factor.
    """
    known = {a.node for a in attended}
    nodes = {n.name: n for n in traced.graph.nodes if n.name in known}
    query = nodes[name].args[0]
    alike = [n for n in nodes.values() if n.name != name and shape_of(n.args[0])[-1] == shape_of(query)[-1]]
    return foldable(traced, parameters, query, nodes[name], alike)
