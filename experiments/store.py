"""Results of a sweep from Python: rows, columns, what the driver wrote beside them."""

from experiments._store.store import (
    Row,
    StoreError,
    columns,
    latest,
    read,
    read_meta,
    writing,
)

__all__ = ["Row", "StoreError", "columns", "latest", "read", "read_meta", "writing"]
