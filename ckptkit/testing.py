"""What every format must satisfy, as a pytest class to inherit; plugins use it as ckptkit's own formats do.

    from ckptkit.testing import FormatContract

    class TestRaw(FormatContract):
        format = my_package.RAW
        examples = (Path("tests/data/small.raw"),)

Examples should be small (some kilobytes): they are cut and damaged a few hundred times.
"""

import pickle
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from ckptkit.core.dtypes import DTYPES
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.core.plan import Layout, WriteOptions
from ckptkit.core.stream import write_file
from ckptkit.core.tensor import Tensor
from ckptkit.format import read, sniff
from ckptkit.format.registry import Format

_ALL = ReadOptions(section="all")
# Bytes that no format may claim.
_STRANGERS = {
    "empty": b"",
    "zeros": bytes(4096),
    "text": b"epoch 1, loss 0.5\n" * 8,
    "page": b"<!DOCTYPE html><html></html>",
    "json": b'{"model_type": "bert"}',
    "noise": random.Random(0).randbytes(4096),
}


def write(layout: Layout, folder: Path) -> Path:
    """Write a layout's files into a folder; returns the path of the last one, the target itself."""
    for file in layout.files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        write_file(file, folder / file.path)
    return folder / layout.files[-1].path


def sample(folder: Path) -> TensorGraph:
    """A graph to write: a matrix, a scalar, an empty tensor, integers, a tie and metadata."""
    path = folder / "sample.bytes"
    path.write_bytes(bytes(range(1, 97)))
    file = File.at(path)
    tensors = {
        "fc.weight": Tensor(DTYPES["float32"], (4, 3), file, 0),
        "fc.bias": Tensor(DTYPES["float16"], (4,), file, 48),
        "steps": Tensor(DTYPES["int64"], (), file, 56),
        "empty": Tensor(DTYPES["float32"], (0, 3), file, 64),
        "mask": Tensor(DTYPES["uint8"], (2, 16), file, 64),
        "tied.weight": Tensor(DTYPES["float32"], (4, 3), file, 0),
    }
    return TensorGraph(tensors, Origin(str(path), "sample", files=(file,)), metadata={"note": "größer"})


class FormatContract:
    """Inherit, set `format` and `examples`; `write_sample = False` for a format that writes only its own graphs."""

    format: ClassVar[Format]
    examples: ClassVar[Sequence[Path]]
    write_sample: ClassVar[bool] = True
    damages: ClassVar[int] = 120  # of each example

    def graphs(self) -> Iterator[tuple[Path, TensorGraph]]:
        """Each example with what its reader makes of it."""
        module = self.format.load()
        for path in self.examples:
            yield path, module.read(str(path), _ALL)

    def test_the_registry_line_is_well_formed(self) -> None:
        line = self.format
        assert re.fullmatch(r"[a-z][a-z0-9-]*", line.name)
        assert line.title
        assert line.reads or line.writes
        assert all(re.fullmatch(r"(\.[a-z0-9]+)+", suffix) for suffix in line.suffixes)
        module = line.load()
        assert callable(module.read)
        assert hasattr(module, "layout") == bool(line.writes)

    def test_its_files_are_recognised_by_content(self, tmp_path: Path) -> None:
        assert self.examples
        for path in self.examples:
            bare = tmp_path / "model"
            bare.write_bytes(path.read_bytes())
            assert self._matches(bare), path

    @pytest.mark.parametrize("stranger", _STRANGERS)
    def test_other_files_are_not_claimed(self, tmp_path: Path, stranger: str) -> None:
        path = tmp_path / "stranger"
        path.write_bytes(_STRANGERS[stranger])
        assert not self._matches(path)

    def test_reading_gives_tensors_that_keep_their_promises(self) -> None:
        for path, graph in self.graphs():
            assert graph.origin.format == self.format.name, path
            assert graph.origin.path == str(path)
            assert graph.origin.files[0] == File.at(path)
            for name, tensor in graph.items():
                assert all(type(size) is int and size >= 0 for size in tensor.shape), name
                for extent in tensor.extents:
                    assert extent.file in graph.origin.files, name
                    assert 0 <= extent.offset <= extent.offset + extent.nbytes <= extent.file.size, name
                data = tensor.tobytes()
                assert len(data) == tensor.nbytes, name
                self._check_chunks(name, tensor, data)
                again = pickle.loads(pickle.dumps(tensor))
                assert (again.dtype, again.shape, again.tobytes()) == (tensor.dtype, tensor.shape, data), name

    def test_reading_twice_gives_the_same(self) -> None:
        for (path, one), (_, two) in zip(self.graphs(), self.graphs(), strict=True):
            assert list(one) == list(two), path
            assert one.metadata == two.metadata
            assert one.ties() == two.ties()

    def test_public_read_finds_the_format(self) -> None:
        for path in self.examples:
            assert read(path, "all").origin.format == self.format.name

    def test_a_damaged_file_is_refused_or_read_but_nothing_else(self, tmp_path: Path) -> None:
        """Cut and altered files end in CkptError or in tensors whose bytes can be had: in no other exception."""
        module = self.format.load()
        chance = random.Random(20)
        for path in self.examples:
            whole = path.read_bytes()
            for number in range(self.damages):
                data = bytearray(whole)
                if number % 3 == 0:
                    del data[chance.randrange(len(data)) :]
                for _ in range(number % 3 * 2):
                    # Headers stand at the ends.
                    near = chance.choice(
                        (chance.randrange(min(len(data), 512)), chance.randrange(len(data)), -1)
                    )
                    data[near] = chance.randrange(256)
                damaged = tmp_path / f"damaged-{number}{path.suffix}"
                damaged.write_bytes(data)
                try:
                    graph = module.read(str(damaged), _ALL)
                    for tensor in graph.values():
                        if tensor.nbytes <= 1 << 20:
                            assert len(tensor.tobytes()) == tensor.nbytes
                except CkptError as error:
                    self._check_error(error)
                damaged.unlink()

    def test_a_missing_file_and_a_folder_are_refused(self, tmp_path: Path) -> None:
        module = self.format.load()
        with pytest.raises(CkptError) as missing:
            module.read(str(tmp_path / "nothing"), _ALL)
        assert missing.value.code == "not-found"
        with pytest.raises(CkptError) as folder:
            module.read(str(tmp_path), _ALL)
        assert folder.value.code == "not-a-file"

    def test_writing_is_planned_without_touching_a_file(self, tmp_path: Path) -> None:
        for layout, _ in self._layouts(tmp_path):
            names = [file.path for file in layout.files]
            assert len(set(names)) == len(names)
            for file in layout.files:
                file.check()
                assert not Path(file.path).is_absolute()
                assert pickle.loads(pickle.dumps(file)).size == file.size  # an independent, picklable job

    def test_what_is_written_reads_back_equal(self, tmp_path: Path) -> None:
        module = self.format.load()
        for number, (layout, graph) in enumerate(self._layouts(tmp_path)):
            target = write(layout, tmp_path / str(number))
            assert target.stat().st_size == layout.files[-1].size
            back = module.read(str(target), _ALL)
            assert sorted(back) == sorted(graph)
            for name, tensor in graph.items():
                assert back[name].shape == tensor.shape, name
                assert back[name].dtype == tensor.dtype, name
                assert back[name].tobytes() == tensor.tobytes(), name
            groups = {frozenset(names) for names in back.storages()}
            assert {frozenset(names) for names in graph.storages()} == groups

    def test_writing_twice_gives_equal_bytes(self, tmp_path: Path) -> None:
        first = [write(layout, tmp_path / f"a{n}") for n, (layout, _) in enumerate(self._layouts(tmp_path))]
        second = [write(layout, tmp_path / f"b{n}") for n, (layout, _) in enumerate(self._layouts(tmp_path))]
        for one, two in zip(first, second, strict=True):
            assert one.read_bytes() == two.read_bytes()

    def test_tied_tensors_can_be_copied_or_refused(self, tmp_path: Path) -> None:
        if not (self.format.writes and self.write_sample):
            pytest.skip("this format writes no graph of another")
        graph, name = sample(tmp_path), "copy" + self.format.suffixes[0]
        module = self.format.load()
        target = write(module.layout(graph, name, WriteOptions(ties="copy")), tmp_path / "copy")
        back = module.read(str(target), _ALL)
        assert back.ties() == {}
        assert back["tied.weight"].tobytes() == graph["fc.weight"].tobytes()
        with pytest.raises(CkptError) as refusal:
            module.layout(graph, name, WriteOptions(ties="error"))
        assert refusal.value.code == "tied-tensors"

    def _layouts(self, folder: Path) -> Iterator[tuple[Layout, TensorGraph]]:
        """Layouts of the sample (or, for a format that writes only its own, of the examples) with their graphs."""
        if not self.format.writes:
            pytest.skip("this format is only read")
        module = self.format.load()
        name = "model" + self.format.suffixes[0]
        graphs = [sample(folder)] if self.write_sample else [graph for _, graph in self.graphs()]
        for graph in graphs:
            before = sorted(folder.iterdir())
            yield module.layout(graph, name, WriteOptions()), graph
            assert sorted(p for p in folder.iterdir() if p.is_file()) == [p for p in before if p.is_file()]

    def _matches(self, path: Path) -> bool:
        with File.at(path).open() as reader:
            return self.format.matches(sniff.Head(reader))

    def _check_chunks(self, name: str, tensor: Tensor, data: bytes) -> None:
        unit = max(1, tensor.dtype.bits // 8)
        for limit in (1, 7, 64, 1 << 20):
            if len(data) > 4096 * limit:
                continue
            chunks = [bytes(chunk) for chunk in tensor.chunks(limit)]
            assert b"".join(chunks) == data, name
            if tensor.dtype.bits:
                assert all(len(chunk) <= max(limit, unit) and len(chunk) % unit == 0 for chunk in chunks), (
                    name
                )

    def _check_error(self, error: CkptError) -> None:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", error.code)
        assert error.message
        assert "\n" not in error.message
