"""What states gain is moved into blocks: equal in value, never shared by two states; large tensors stay where they are."""

from __future__ import annotations

import torch

from tokbench.blocks import Blocks


def test_what_is_new_is_moved_and_equal_and_what_was_there_stays() -> None:
    blocks = Blocks()
    old = torch.arange(3)
    before = {"sum": old}
    after = {
        "sum": old + 1,
        "row/a": torch.randn(2048),
        "count": torch.tensor(7),
        "flags": torch.ones(5, dtype=torch.bool),
    }
    found = blocks.moved(before, after)
    assert found["sum"] is after["sum"]
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in after.items())
    assert found["row/a"].data_ptr() != after["row/a"].data_ptr()
    assert list(found) == list(after)


def test_two_states_from_one_start_do_not_overwrite_each_other() -> None:
    blocks = Blocks()
    first = blocks.moved({}, {"row/a": torch.full((2048,), 1.0)})
    again = blocks.moved({}, {"row/a": torch.full((2048,), 2.0)})
    assert first["row/a"].eq(1).all()
    assert again["row/a"].eq(2).all()


def test_more_rows_than_a_block_holds() -> None:
    blocks = Blocks()
    rows = {f"row/{i}": torch.full((2048,), float(i)) for i in range(3000)}
    found = blocks.moved({}, rows)
    assert all(found[key].eq(value).all() for key, value in rows.items())


def test_large_and_empty_tensors_are_left_alone() -> None:
    large, empty = torch.zeros(1 << 20), torch.zeros(0, 3)
    found = Blocks().moved({}, {"large": large, "empty": empty})
    assert found["large"] is large
    assert found["empty"] is empty
