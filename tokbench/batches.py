"""Groups a stream of samples into batches of equal shape, holding a bounded number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tokbench.data import Failure, Item

_HELD = 4  # batches' worth of samples that may wait for company before the fullest bucket is sent off


def equal_shapes(stream: Iterable[Item | Failure], size: Callable[[], int]) -> Iterator[list[Item] | Failure]:
    """Yield lists of at most `size()` items of one shape (signal and original), and failures as they come.

    `size` is asked each time, so that an out-of-memory back-off takes effect at once. No more than four batches of items
    are held; then the fullest bucket is sent, full or not.
    """
    waiting: dict[tuple[object, ...], list[Item]] = {}
    held = 0
    for entry in stream:
        if isinstance(entry, Failure):
            yield entry
            continue
        shape = _shape(entry)
        bucket = waiting.setdefault(shape, [])
        bucket.append(entry)
        held += 1
        if len(bucket) < size():
            if held < _HELD * size():
                continue
            shape = max(waiting, key=lambda key: len(waiting[key]))
        batch = waiting.pop(shape)
        held -= len(batch)
        yield batch
    yield from waiting.values()


def _shape(item: Item) -> tuple[object, ...]:
    original = None if item.original is None else item.original.shape
    return (item.signal.shape, item.sample_rate, item.fps, original, item.padding)
