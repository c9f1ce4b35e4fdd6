"""Fingerprints and index patterns: what the finder's candidates rest on."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit
from ckptkit.core.errors import CkptError
from ckptkit.match.finder import Source, evaluate, find, prints
from ckptkit.match.finder.lattice import recognise, select
from ckptkit.match.finder.prints import fingerprint, marginals
from tests.match.test_finder import normal, tensor

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"]


def added(*sums: int | None) -> int:
    """Two 32-bit sums side by side, each added on its own."""
    known = [s for s in sums if s is not None]
    assert len(known) == len(sums)
    low = sum(s & 0xFFFFFFFF for s in known) & 0xFFFFFFFF
    return (sum(s >> 32 for s in known) & 0xFFFFFFFF) << 32 | low


def values(shape: tuple[int, ...], dtype: str) -> Any:
    x = normal(*shape)
    return x > 0 if dtype == "bool" else (x * 100).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_outlive_permutation_and_add_up(dtype: str) -> None:
    x = values((301, 7), dtype)
    whole = fingerprint(tensor(x))
    shuffled = np.random.default_rng(0).permutation(x.reshape(-1)).reshape(7, 301)
    assert fingerprint(tensor(shuffled)).sums == whole.sums
    assert fingerprint(tensor(shuffled)).digest != whole.digest
    assert added(fingerprint(tensor(x[:100])).sums, fingerprint(tensor(x[100:])).sums) == whole.sums
    changed = x.copy()
    changed.reshape(-1).view("u1")[5] ^= 1
    assert fingerprint(tensor(changed)).sums != whole.sums


def test_equal_bytes_have_equal_digests_in_any_shape() -> None:
    x = normal(6, 4)
    assert fingerprint(tensor(x)) == fingerprint(tensor(x.reshape(2, 12)))


def test_constants() -> None:
    x = np.full((1000, 300), 1.5, "f4")
    assert fingerprint(tensor(x)).constant
    x[999, 299] = 1.25
    assert not fingerprint(tensor(x)).constant


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.sampled_from([8, 16, 64]))
def test_sums_along_axes(shape: list[int], entries: int) -> None:
    """Whatever is too large to be kept, each sum that is given is that of its slab."""
    x = values(tuple(shape), "float32")
    spans = [(first, stop) for first in range(len(shape)) for stop in range(first + 1, len(shape) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prints, "ENTRIES", entries)
        patch.setattr(prints, "BLOCK", 16)
        patch.setattr(prints, "READ", 40)
        found = marginals(tensor(x), spans)
    for (first, stop), sums in found.items():
        slabs = x.reshape(prod(shape[:first]), prod(shape[first:stop]), -1)
        assert [int(s) for s in sums] == [
            fingerprint(tensor(slabs[:, k])).sums for k in range(slabs.shape[1])
        ]
    for dim, size in enumerate(shape):
        small = prod(shape[: dim + 1]) <= entries or prod(shape[dim:]) <= entries
        assert ((dim, dim + 1) in found) >= (small and size > 0)


@given(st.data())
def test_a_lattice_is_recognised_and_written_as_layout(data: st.DataObject) -> None:
    """Indices from splitting an axis, taking ranges of the factors, and reordering them."""
    factors = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    ranges = []
    for factor in factors:
        start = data.draw(st.integers(0, factor - 1))
        ranges.append((start, data.draw(st.integers(start + 1, factor))))
    order = data.draw(st.permutations(range(len(factors))))
    size = prod(factors)
    grid = np.arange(size).reshape(factors)[tuple(slice(*r) for r in ranges)].transpose(order)
    indices = grid.reshape(-1)
    x = normal(3, size, 2)
    lattice = recognise(indices)
    if (np.diff(indices) <= 0).any() and lattice is None:
        return  # steps backwards are told as runs
    assert lattice is not None
    expression = select(Source("x"), x.shape, 1, int(indices[0]), lattice)
    if expression is not None:
        assert np.array_equal(evaluate(expression, {"x": tensor(x)}), np.take(x, indices, 1))
    counted = indices[0] + sum(
        (np.arange(n) * step).reshape([-1 if k == level else 1 for k in range(len(lattice))])
        for level, (n, step) in enumerate(lattice)
    )
    assert np.array_equal(np.asarray(counted).reshape(-1), indices)


def test_what_reading_raises_comes_through(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name in "ab":
        save_file({f"{name}{k}": normal(64, 64, seed=k) for k in range(9)}, tmp_path / f"{name}.safetensors")
    a, b = (ckptkit.read(str(tmp_path / f"{name}.safetensors")) for name in "ab")
    assert len(find(a, b).pairs) == 9
    (tmp_path / "b.safetensors").write_bytes(b"gone")
    with pytest.raises(CkptError) as caught:
        find(a, b)
    assert caught.value.code == "changed-on-disk"
