"""The Jacobian engine: structured blocks, whole and batched Jacobians, the batch axis followed through a graph."""
