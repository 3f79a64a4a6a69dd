"""Finds what stock TensorFlow Serving refuses to run although a Python session runs it: compiled functions.

A function exported with `jit_compile=True` answers "XLA compilation disabled" in the C++ server, whose binary
has no compiler for it switched on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MUST_COMPILE = "_XlaMustCompile"


def compiled_nodes(graph_def: Any) -> set[str]:
    """Names the nodes of a graph that need XLA, because they or something they depend on must compile.

    Args:
        graph_def: GraphDef, with its function library.
    """
    library = graph_def.library.function
    compiled = {f.signature.name for f in library if MUST_COMPILE in f.attr and f.attr[MUST_COMPILE].b}
    grown = True
    while grown:  # Functions call functions; a few rounds reach all of them.
        callers = {f.signature.name for f in library if _calls(f.node_def, compiled)}
        grown = not callers <= compiled
        compiled |= callers
    nodes = {node.name for node in graph_def.node if _calls([node], compiled)}
    grown = bool(nodes)
    while grown:
        followers = {node.name for node in graph_def.node if any(_node_name(i) in nodes for i in node.input)}
        grown = not followers <= nodes
        nodes |= followers
    return nodes


def _calls(nodes: Iterable[Any], functions: set[str]) -> bool:
    for node in nodes:
        if node.op in functions or (MUST_COMPILE in node.attr and node.attr[MUST_COMPILE].b):
            return True
        for value in node.attr.values():
            if value.func.name in functions or any(func.name in functions for func in value.list.func):
                return True
    return False


def _node_name(tensor_name: str) -> str:
    return tensor_name.lstrip("^").split(":")[0]
