"""pytrees, by optree: one place that knows our namespace and that None is a leaf without numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optree

NAMESPACE = "gradlib"
LEAVES: set[type] = {np.ndarray}  # classes known to be no trees: a lone array need not be looked through
_LEAF: Any = optree.treespec_leaf(namespace=NAMESPACE)


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """(leaves, structure); None holds no leaf."""
    return ([tree], _LEAF) if type(tree) in LEAVES else optree.tree_flatten(tree, namespace=NAMESPACE)


def unflatten(structure: Any, leaves: Any) -> Any:
    if structure is _LEAF:
        (leaf,) = leaves
        return leaf
    return optree.tree_unflatten(structure, leaves)


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return optree.tree_map(f, tree, *rest, namespace=NAMESPACE)


def paths(tree: Any) -> list[str]:
    """How error messages name the leaves: ``['w']``, ``[0].bias``; '' for a tree that is one leaf."""
    return [str(path).removeprefix("*") for path in _keystrings(tree)]


def _keystrings(tree: Any) -> list[str]:
    accessors = optree.tree_accessors(tree, namespace=NAMESPACE)
    return [a.codify("") for a in accessors]


def register(kind: type, flatten_: Callable[..., Any], unflatten_: Callable[..., Any]) -> None:
    """Make a class a pytree: `flatten_` gives (children, metadata)."""
    optree.register_pytree_node(kind, flatten_, unflatten_, namespace=NAMESPACE)  # type: ignore[arg-type]
