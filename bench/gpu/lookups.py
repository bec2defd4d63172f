"""Cases of lookups: embedding, and products with sparse rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from case import Arrays, Case, some, spread
from libraries import torch_forward


# Embedding: ids as frequent as words.
def words(rng: np.random.Generator, ids: int, vocabulary: int, width: int) -> Arrays:
    share = 1 / np.arange(1, vocabulary + 1)
    return {"ids": rng.choice(vocabulary, ids, p=share / share.sum()), "table": spread(rng, (vocabulary, width))}


def words_back(rng: np.random.Generator, ids: int, vocabulary: int, width: int) -> Arrays:
    return {**words(rng, ids, vocabulary, width), "dy": spread(rng, (ids, width))}


def gradlib_gather(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    return lambda: gl.embedding(a["ids"], a["table"])


def gradlib_scatter(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl

    pullback = gl.vjp(lambda table: gl.embedding(a["ids"], table), a["table"])[1]
    return lambda: pullback(a["dy"])[0]


def torch_embedding(ids: Any, table: Any) -> Any:
    from torch.nn import functional

    return functional.embedding(ids, table)


def torch_scatter(compiled: bool) -> Any:
    def build(a: dict[str, Any]) -> Callable[[], Any]:
        import torch

        table = a["table"].requires_grad_()
        y = (torch.compile(torch_embedding, dynamic=False) if compiled else torch_embedding)(a["ids"], table)
        return lambda: torch.autograd.grad(y, table, a["dy"], retain_graph=True)[0]

    return build


def jax_gather(a: dict[str, Any]) -> Callable[[], Any]:
    import jax

    take = jax.jit(lambda ids, table: table[ids])
    return lambda: take(a["ids"], a["table"])


def jax_scatter(a: dict[str, Any]) -> Callable[[], Any]:
    import jax

    add = jax.jit(lambda ids, table, dy: jax.numpy.zeros_like(table).at[ids].add(dy))
    return lambda: add(a["ids"], a["table"], a["dy"])


def scattered(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    return [np.stack([a["dy"][a["ids"] == row].sum(0, dtype=float) for row in rows])]


# Sparse rows S, as of a bag of words, times a dense matrix, and the transposed product, which is its derivative.
def sparse(rng: np.random.Generator, rows: int, entries: int, vocabulary: int, width: int) -> Arrays:
    share = 1 / np.arange(1, vocabulary + 1)
    return {
        "data": spread(rng, (rows * entries,)),
        "indices": rng.choice(vocabulary, rows * entries, p=share / share.sum()).astype(np.int32),
        "indptr": np.arange(0, rows * entries + 1, entries, dtype=np.int32),
        "w": spread(rng, (vocabulary, width)),
        "dy": spread(rng, (rows, width)),
    }


def gradlib_product(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl
    from gradlib.ops.csr import Pattern

    rows = gl.CSR(a["data"], Pattern(a["indices"], a["indptr"], (len(a["dy"]), len(a["w"]))))
    return lambda: gl.linear(rows, a["w"])


def gradlib_transposed(a: dict[str, Any]) -> Callable[[], Any]:
    import gradlib as gl
    from gradlib.ops.csr import Pattern

    rows = gl.CSR(a["data"], Pattern(a["indices"], a["indptr"], (len(a["dy"]), len(a["w"]))))
    pullback = gl.vjp(lambda w: gl.linear(rows, w), a["w"])[1]
    return lambda: pullback(a["dy"])[0]


def torch_rows(a: dict[str, Any]) -> Any:
    import torch

    return torch.sparse_csr_tensor(a["indptr"], a["indices"], a["data"], (len(a["dy"]), len(a["w"])))


def torch_product(a: dict[str, Any]) -> Callable[[], Any]:
    rows = torch_rows(a)
    return lambda: rows @ a["w"]


def torch_transposed(a: dict[str, Any]) -> Callable[[], Any]:
    columns = torch_rows(a).to_sparse_coo().t().coalesce().to_sparse_csr()  # made once, as ours sorts once
    return lambda: columns @ a["dy"]


def product_rows(a: Arrays, rows: np.ndarray) -> list[np.ndarray]:
    entries = [slice(a["indptr"][r], a["indptr"][r + 1]) for r in rows]
    return [np.stack([a["data"][e] @ some(a["w"], a["indices"][e]) for e in entries])]


def transposed_rows(a: Arrays, columns: np.ndarray) -> list[np.ndarray]:
    each = a["indptr"][1]
    found = [np.flatnonzero(a["indices"] == c) for c in columns]
    return [np.stack([a["data"][e] @ some(a["dy"], e // each) for e in found])]


def sparse_case(name: str, contenders: dict[str, Any], reference: Any) -> Case:
    return Case(
        f"{name}, 4 million entries x 256", "sparse rows", sparse, contenders, reference,
        {"rows": 1 << 16, "entries": 64, "vocabulary": 50_000, "width": 256},
        {"rows": 4, "entries": 3, "vocabulary": 6, "width": 4},
        moved=lambda a: sum(a[k].nbytes for k in ("data", "indices", "w", "dy")),
        operations=lambda a: 2 * a["data"].size * a["w"].shape[1],
    )  # fmt: skip


IDS = {"ids": 1 << 18, "vocabulary": 50_000, "width": 1024}
FEW = {"ids": 7, "vocabulary": 5, "width": 4}
CASES = [
    Case("embedding gather, 262144 ids x 1024", "embedding", words,
         {"gradlib": gradlib_gather, "torch": torch_forward(torch_embedding, ("ids", "table")),
          "torch compiled": torch_forward(torch_embedding, ("ids", "table"), compiled=True), "jax": jax_gather},
         lambda a, rows: [some(a["table"], a["ids"][rows])], IDS, FEW,
         moved=lambda a: 2 * 4 * a["ids"].size * a["table"].shape[1]),
    Case("embedding scatter, 262144 ids x 1024", "embedding", words_back,
         {"gradlib": gradlib_scatter, "torch": torch_scatter(False), "torch compiled": torch_scatter(True),
          "jax": jax_scatter}, scattered, IDS, FEW, moved=lambda a: a["dy"].nbytes + a["table"].nbytes,
         operations=lambda a: a["dy"].size),
    sparse_case("sparse rows", {"gradlib": gradlib_product, "torch": torch_product}, product_rows),
    sparse_case("sparse columns", {"gradlib": gradlib_transposed, "torch": torch_transposed},
                transposed_rows),
]  # fmt: skip
