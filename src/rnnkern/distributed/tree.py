"""The order in which shards are summed: a binary tree over their numbers."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["middle", "nodes_of", "parents"]

Node: TypeAlias = tuple[int, int]  # shards [first, last)


def middle(node: Node) -> int:
    """Where a node of at least two shards is divided: the left child has a power of two."""
    first, last = node
    return first + (1 << ((last - first - 1).bit_length() - 1))


def parents(shards: int) -> dict[tuple[Node, Node], Node]:
    """The node of each pair of children.

    Examples
    --------
    >>> from rnnkern.distributed.tree import parents
    >>> parents(3)
    {((0, 2), (2, 3)): (0, 3), ((0, 1), (1, 2)): (0, 2)}
    """
    found, waiting = {}, [(0, shards)]
    while waiting:
        node = waiting.pop(0)
        if node[1] - node[0] > 1:
            cut = middle(node)
            children = (node[0], cut), (cut, node[1])
            found[children] = node
            waiting += children
    return found


def nodes_of(shards: int, ranks: int, rank: int) -> list[Node]:
    """The largest nodes whose shards all belong to one rank, in order.

    Where the shards of a rank are a power of two it is one node.

    Examples
    --------
    >>> from rnnkern.distributed.tree import nodes_of
    >>> nodes_of(8, 2, 1), nodes_of(6, 2, 1)
    ([(4, 8)], [(3, 4), (4, 6)])
    """
    own = shards // ranks
    first, last = rank * own, (rank + 1) * own
    found, waiting = [], [(0, shards)]
    while waiting:
        node = waiting.pop()
        if first <= node[0] and node[1] <= last:
            found.append(node)
        elif node[0] < last and first < node[1]:
            cut = middle(node)
            waiting += [(cut, node[1]), (node[0], cut)]
    return found
