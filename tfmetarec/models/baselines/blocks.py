"""Work cut into blocks, so that no temporary array grows with the number of tasks."""

from collections.abc import Iterator

import numpy as np

BLOCK_SIZE = 2**23
"""Numbers in the largest temporary array: 32 MB of float32, which keeps memory flat however many tasks come."""


def blocks(size: int, width: int) -> Iterator[slice]:
    """Cuts `size` rows of `width` numbers each into slices, none of them empty."""
    step = max(1, BLOCK_SIZE // max(1, width))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def groups(owner: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Packs the rows of each owner into padded blocks, so that a batched solve replaces a loop over owners.

    Yields owners `(T,)`, the positions of their rows `(T, S)` and which of these are real `(T, S)`. Owners with
    similar counts go together: little is padding.
    """
    order = np.argsort(owner, kind="stable")
    owners, start, count = np.unique(owner[order], return_index=True, return_counts=True)
    by_count = np.argsort(count, kind="stable")
    owners, start, count = owners[by_count], start[by_count], count[by_count]
    while len(owners):
        # Counts rise, so the last owner of a block says how wide the block is.
        cost = np.arange(1, len(owners) + 1) * np.maximum(count, width) * width
        size = max(1, int(np.searchsorted(cost, BLOCK_SIZE, side="right")))
        place = np.arange(count[size - 1])
        real = place < count[:size, None]
        yield owners[:size], order[np.where(real, start[:size, None] + place, 0)], real
        owners, start, count = owners[size:], start[size:], count[size:]
