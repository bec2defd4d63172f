"""pytrees, by optree: one place that knows our namespace, that None is a leaf without numbers, and dataclasses."""

from __future__ import annotations

import dataclasses
import threading
from builtins import map as each
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optree

NAMESPACE = "gradlib"
LEAVES: set[type] = {np.ndarray}  # classes known to be no trees: a lone array need not be looked through
_LEAF: Any = optree.treespec_leaf(namespace=NAMESPACE)

PLAIN: set[type] = {np.ndarray, float, int, bool, str}  # classes of leaves known to be no dataclasses
_dataclasses: set[type] = set()  # registered ones
_registering = threading.Lock()


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """(leaves, structure); None holds no leaf. Dataclasses are trees: see `register_dataclass`."""
    if type(tree) in LEAVES:
        return [tree], _LEAF
    leaves, structure = optree.tree_flatten(tree, namespace=NAMESPACE)
    if not PLAIN.issuperset(each(type, leaves)) and _met(leaves):
        return flatten(tree)
    return leaves, structure


def unflatten(structure: Any, leaves: Any) -> Any:
    if structure is _LEAF:
        (leaf,) = leaves
        return leaf
    return optree.tree_unflatten(structure, leaves)


def map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """f of each leaf, with what stands at its place in the other trees."""
    leaves, structure = flatten(tree)
    others = [structure.flatten_up_to(other) for other in rest]
    return unflatten(structure, [f(*together) for together in zip(leaves, *others, strict=True)])


def paths(tree: Any) -> list[str]:
    """How error messages name the leaves: ``['w']``, ``[0].bias``; '' for a tree that is one leaf."""
    return [str(path).removeprefix("*") for path in _keystrings(tree)]


def _keystrings(tree: Any) -> list[str]:
    accessors = optree.tree_accessors(tree, namespace=NAMESPACE)
    return [a.codify("") for a in accessors]


def register(kind: type, flatten_: Callable[..., Any], unflatten_: Callable[..., Any]) -> None:
    """Make a class a pytree: `flatten_` gives (children, metadata)."""
    optree.register_pytree_node(kind, flatten_, unflatten_, namespace=NAMESPACE)  # type: ignore[arg-type]


def _met(leaves: Iterable[Any]) -> bool:
    """Look at the classes of leaves; True if one is a dataclass, which is a tree from now on."""
    found = False
    for kind in {type(x) for x in leaves} - PLAIN:
        if not dataclasses.is_dataclass(kind) or hasattr(kind, "__dlpack__"):
            PLAIN.add(kind)
            continue
        found = True
        with _registering:
            if kind not in _dataclasses:
                register_dataclass(kind)
                _dataclasses.add(kind)
    return found


def register_dataclass(kind: type) -> None:
    """Make a dataclass a pytree: its fields are subtrees, but those with `metadata={"pytree_node": False}`.

    Copies are made without `__init__` and `__post_init__`, since what they hold may be no array (a structure, a path).
    """
    fields = [(f.name, f.metadata.get("pytree_node", True)) for f in dataclasses.fields(kind)]

    def children_of(x: Any) -> tuple[list[Any], tuple, tuple]:
        here = [(name, is_node) for name, is_node in fields if hasattr(x, name)]
        names = tuple([name for name, is_node in here if is_node])
        kept = tuple([(name, getattr(x, name)) for name, is_node in here if not is_node])
        return [getattr(x, name) for name in names], (names, kept), names

    def rebuilt(metadata: Any, children: Iterable[Any]) -> Any:
        names, kept = metadata
        x: Any = object.__new__(kind)
        for name, value in (*zip(names, children, strict=True), *kept):
            object.__setattr__(x, name, value)  # frozen ones too
        return x

    optree.register_pytree_node(
        kind,  # type: ignore[arg-type]
        children_of,  # type: ignore[arg-type]
        rebuilt,
        path_entry_type=optree.DataclassEntry,
        namespace=NAMESPACE,
    )
