"""Layout operations equal numpy's, whatever the tensor's source and however small the chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.arrays import pack
from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.plan import stored_runs
from ckptkit.core.tensor import Tensor
from ckptkit.ops import join, layout
from ckptkit.ops.values import elementwise


def plain(folder: Path, array: Any, dtype: str | None = None) -> Tensor:
    kind = DTYPES[dtype or str(array.dtype)]
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    path.write_bytes(pack(array, kind) if kind.bits < 8 else array.tobytes())
    return Tensor(kind, array.shape, File.at(path), 0)


def numbers(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype="f4").reshape(shape)


# Sources of each kind for one array: plain, strided, in order only.
SOURCES: dict[str, Callable[[Path, Any], Tensor]] = {
    "plain": plain,
    "view": lambda folder, a: layout.permute(plain(folder, np.ascontiguousarray(a.T)), range(a.ndim)[::-1]),
    "computed": lambda folder, a: elementwise(plain(folder, a - 1), "add", 1),
    "joined": lambda folder, a: join.concat([plain(folder, a[:1]), plain(folder, a[1:])], 0),
    "turns": lambda folder, a: join.concat(
        [plain(folder, a[:, :1].copy()), plain(folder, a[:, 1:].copy())], 1
    ),
}


def same(tensor: Tensor, array: Any) -> None:
    assert tensor.shape == array.shape
    wanted = np.ascontiguousarray(array).tobytes()
    for limit in (4, 24, 100, 1 << 20):
        chunks = [bytes(chunk) for chunk in tensor.chunks(limit)]
        assert b"".join(chunks) == wanted
    assert tensor.memory(64) >= max(map(len, tensor.chunks(64)), default=0)


@pytest.mark.parametrize("source", SOURCES)
@given(data=st.data())
def test_chains_equal_numpy(
    source: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = numbers(4, 6, 2)
    tensor = SOURCES[source](tmp_path_factory.mktemp("t"), array)
    for _ in range(data.draw(st.integers(1, 4))):
        rank = array.ndim
        match data.draw(st.sampled_from(["permute", "narrow", "reshape", "concat", "stack"])):
            case "permute":
                order = data.draw(st.permutations(range(rank)))
                tensor, array = layout.permute(tensor, order), array.transpose(order)
            case "narrow":
                dim = data.draw(st.integers(-rank, rank - 1))
                start = data.draw(st.integers(0, array.shape[dim]))
                stop = data.draw(st.integers(start, array.shape[dim]))
                step = data.draw(st.integers(1, 3))
                index: list[Any] = [slice(None)] * rank
                index[dim] = slice(start, stop, step)
                tensor, array = layout.narrow(tensor, dim, start, stop, step), array[tuple(index)]
            case "reshape":
                flat = int(array.size)
                factors = [n for n in (1, 2, 3, 4, 6) if flat and flat % n == 0]
                shape = (data.draw(st.sampled_from(factors)), -1) if factors else (flat,)
                tensor, array = layout.reshape(tensor, shape), array.reshape(shape)
            case "concat":
                dim = data.draw(st.integers(0, rank - 1))
                tensor, array = join.concat([tensor, tensor], dim), np.concatenate([array, array], dim)
            case _ if rank < 5:
                dim = data.draw(st.integers(0, rank))
                tensor, array = join.stack([tensor, tensor, tensor], dim), np.stack([array] * 3, dim)
    same(tensor, array)


def test_rows_of_a_plain_tensor_are_plain(tmp_path: Path) -> None:
    rows = layout.narrow(plain(tmp_path, numbers(6, 4)), 0, 2, 5)
    assert (rows.file is not None, rows.offset, rows.shape) == (True, 32, (3, 4))
    same(rows, numbers(6, 4)[2:5])


def test_joins_of_plain_tensors_are_runs(tmp_path: Path) -> None:
    a, b = plain(tmp_path, numbers(2, 3)), plain(tmp_path, numbers(4, 3))
    both = join.stack([join.concat([a, b], 0), join.concat([b, a], 0)], 0)
    runs = stored_runs(both)
    assert runs is not None
    assert [(run.file, run.nbytes) for run in runs] == [
        (a.file, 24), (b.file, 48), (b.file, 48), (a.file, 24)
    ]  # fmt: skip
    middle = stored_runs(layout.narrow(both, 0, 1, 2))
    assert middle is not None
    assert [(run.file, run.nbytes) for run in middle] == [(b.file, 48), (a.file, 24)]
    assert stored_runs(join.concat([a, a], 1)) is None


def test_packed_elements(tmp_path: Path) -> None:
    array = (np.arange(24) % 16 - 8).astype(ml_dtypes.int4).reshape(6, 4)
    tensor = plain(tmp_path, array, "int4")
    assert layout.narrow(tensor, 0, 2, 4).file is not None
    assert np.array_equal(layout.permute(tensor, (1, 0)).numpy(), array.T)
    assert np.array_equal(join.concat([tensor, tensor], 1).numpy(), np.concatenate([array, array], 1))
    odd = plain(tmp_path, array[:, :3].copy(), "int4")
    with pytest.raises(CkptError) as caught:
        join.concat([odd, odd], 1)
    assert caught.value.code == "op-dtype"


@pytest.mark.parametrize(
    "make",
    [
        lambda t: layout.reshape(t, (5, 5)),
        lambda t: layout.reshape(t, (-1, -1)),
        lambda t: layout.permute(t, (0, 0)),
        lambda t: layout.permute(t, (0,)),
        lambda t: layout.narrow(t, 0, 0, 7),
        lambda t: layout.narrow(t, 0, 3, 2),
        lambda t: layout.narrow(t, 2, 0, 1),
        lambda t: join.concat([t, layout.reshape(t, (4, 6))], 0),
        lambda t: join.stack([t, layout.reshape(t, (4, 6))], 0),
        lambda t: join.concat([t], 2),
        lambda t: join.stack([t], 3),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        make(plain(tmp_path, numbers(6, 4)))
    assert caught.value.code == "op-shape"
