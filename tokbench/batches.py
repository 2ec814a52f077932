"""Groups a stream of samples into batches of equal shape, or of like length, holding a bounded number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tokbench.data import Failure, Item

_HELD = 4  # batches' worth of samples that may wait for company before the fullest bucket is sent off


def batches(
    stream: Iterable[Item | Failure], size: Callable[[], int], *, padding_safe: bool = False
) -> Iterator[list[Item] | Failure]:
    """Yield lists of at most `size()` items of one shape (signal and original), and failures as they come.

    With `padding_safe`, sounds of different lengths share a batch: of those that wait, the ones nearest in length.

    `size` is asked each time, so that an out-of-memory back-off takes effect at once. No more than four batches of items
    are held; then the fullest bucket is sent, full or not.
    """
    waiting: dict[tuple[object, ...], list[Item]] = {}
    held = 0
    for entry in stream:
        if isinstance(entry, Failure):
            yield entry
            continue
        shape = _shape(entry, padding_safe)
        bucket = waiting.setdefault(shape, [])
        bucket.append(entry)
        held += 1
        if padding_safe:
            if held < _HELD * size():
                continue
        elif len(bucket) < size():
            if held < _HELD * size():
                continue
            shape = max(waiting, key=lambda key: len(waiting[key]))
        for batch in _cut(waiting.pop(shape), size()):
            held -= len(batch)
            yield batch
    for bucket in waiting.values():
        yield from _cut(bucket, size())


def _cut(bucket: list[Item], size: int) -> Iterator[list[Item]]:
    ordered = sorted(bucket, key=lambda item: item.signal.shape[-1])
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _shape(item: Item, padding_safe: bool) -> tuple[object, ...]:
    original = None if item.original is None else item.original.shape
    shape = item.signal.shape[:-1] if padding_safe else item.signal.shape
    return (shape, item.sample_rate, item.fps, original, item.padding)
