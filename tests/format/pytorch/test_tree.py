"""Names of what a checkpoint holds, modules against torch, sections, and values made to blow up."""

import argparse
import collections
import datetime
import enum
import json
import pathlib
import pickle
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptkit as ck
from ckptkit.core.dtypes import dtype
from ckptkit.core.errors import CkptError
from ckptkit.core.options import ReadOptions
from ckptkit.core.storage import MemoryStorage
from ckptkit.format.pytorch import machine
from ckptkit.format.pytorch.assemble import Assembly, assemble, assemble_attributes
from ckptkit.format.pytorch.nodes import Dict, Global, Object
from ckptkit.format.pytorch.refs import StorageRef
from tests.format.pytorch.unpickling import read, same, same_all, save, saved

torch = pytest.importorskip("torch", reason="needs the torch extra")

pytestmark = pytest.mark.filterwarnings("ignore")


def _sections(found: Assembly) -> dict[str, str]:
    return {section.name: section.role for section in found.sections}


def _unpickled(data: bytes, **options: Any) -> Assembly:
    return assemble(machine.load(data).value, ReadOptions(**options))


def _state(*sizes: int) -> dict[str, Any]:
    return {f"layer{i}.weight": torch.randn(size) for i, size in enumerate(sizes)}


class Color(enum.Enum):
    RED = "red"


class Unknown:
    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


class Slotted:
    __slots__ = ("weight",)


class Listed(list):  # type: ignore[type-arg]
    pass


# Names


def test_a_lone_tensor(tmp_path: Path) -> None:
    value = torch.randn(3)
    same_all(saved(tmp_path, value), {"tensor": value})
    same_all(saved(tmp_path, torch.nn.Parameter(value)), {"tensor": value})


def test_paths(tmp_path: Path) -> None:
    tensors = [torch.full((1,), float(i)) for i in range(12)]
    slotted = Slotted()
    slotted.weight = tensors[6]
    listed = Listed([tensors[7]])
    listed.extra = tensors[8]
    value = {
        "list": [tensors[0], (tensors[1], {"k": tensors[2]})],
        3: tensors[3],
        None: tensors[4],
        ("a", 1): tensors[5],
        "slotted": slotted,
        "listed": listed,
        "ordered": collections.OrderedDict(x=tensors[9]),
        "queue": collections.deque([tensors[10]], maxlen=3),
        "default": collections.defaultdict(list, y=[tensors[11]]),
    }
    found = saved(tmp_path, value, section="all")
    want = [
        "list.0", "list.1.0", "list.1.1.k", "3", "None", "('a', 1)", "slotted.weight", "listed.extra", "listed.0",
        "ordered.x", "queue.0", "default.y.0",
    ]  # fmt: skip
    assert list(found.tensors) == want
    order = [0, 1, 2, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    for name, i in zip(want, order, strict=True):
        same(found.tensors[name], tensors[i])


_trees = st.recursive(
    st.integers(0, 5),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4)
        | st.lists(inner, min_size=1, max_size=4).map(tuple)
        | st.dictionaries(st.text("abc_", min_size=1, max_size=3), inner, min_size=1, max_size=4)
        | st.dictionaries(st.text("abc_", min_size=1, max_size=3), inner, min_size=1, max_size=4).map(
            collections.OrderedDict
        )
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=4).map(
            lambda members: argparse.Namespace(**members)
        )
    ),
    max_leaves=20,
)


def _paths(value: Any, prefix: str = "") -> list[tuple[str, int]]:
    """The obvious recursive definition of the names."""
    if isinstance(value, int):
        return [(prefix or "tensor", value)]
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [
        found for key, inner in pairs for found in _paths(inner, f"{prefix}.{key}" if prefix else str(key))
    ]


@given(_trees, st.integers(0, 5))
def test_any_nesting(tree: Any, protocol: int) -> None:
    arrays = [np.full(1, i, "<i8") for i in range(6)]

    def filled(value: Any) -> Any:
        if isinstance(value, int):
            return arrays[value]
        if isinstance(value, argparse.Namespace):
            return argparse.Namespace(**{key: filled(inner) for key, inner in vars(value).items()})
        if isinstance(value, dict):
            return type(value)((key, filled(inner)) for key, inner in value.items())
        return type(value)(filled(inner) for inner in value)

    found = _unpickled(pickle.dumps(filled(tree), protocol), section="all")
    assert [(name, tensor.tobytes()[0]) for name, tensor in found.tensors.items()] == _paths(tree)


def test_two_paths_to_one_name_are_refused(tmp_path: Path) -> None:
    for value in ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, {1: torch.ones(1), "1": torch.ones(1)}):
        with pytest.raises(CkptError) as caught:
            saved(tmp_path, value, section="all")
        assert caught.value.code == "name-collision"


def test_of_equal_keys_the_last_counts() -> None:
    """As for the dict that pickle would make."""
    stream = pickle.dumps([np.zeros(1), np.ones(1)])
    first, second = machine.load(stream).value
    found = assemble(Dict(["a", first, "b", first, "a", second]), ReadOptions())
    assert list(found.tensors) == ["a", "b"]
    assert found.tensors["a"].tobytes() == np.ones(1).tobytes()


def test_leaves(tmp_path: Path) -> None:
    value = {
        "epoch": 3,
        "lr": 0.5,
        "done": True,
        "none": None,
        "name": "ä\x1b",
        "betas": (0.9, 0.999),
        "empty": {},
        "raw": b"\x00",
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "path": pathlib.PurePosixPath("/a/b"),
        "color": Color.RED,
        "when": datetime.date(2020, 1, 2),
        "device": torch.device("cuda", 1),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "part": argparse.Namespace,
        "big": {str(i): i for i in range(2_000)},
        "state_dict": _state(2),
    }
    leaves = {leaf.path: leaf for leaf in saved(tmp_path, value).objects}
    plain = {"epoch": 3, "lr": 0.5, "done": True, "none": None, "name": "ä\x1b", "empty": {}}
    for name, want in plain.items():
        assert leaves[name].value == want
        assert leaves[name].type == type(want).__name__
        assert not leaves[name].opaque
    assert leaves["betas"].value == [0.9, 0.999]
    assert (leaves["raw"].type, leaves["raw"].value) == ("bytes", None)
    assert (leaves["args"].type, leaves["args"].opaque) == ("argparse.Namespace", True)
    assert leaves["args.lr"].value == 0.1
    assert leaves["args.layers"].value == [1, 2]
    assert leaves["path"].value == "/a/b"
    assert (leaves["color"].value, leaves["color"].opaque) == ("red", True)
    assert (leaves["when"].type, leaves["when"].opaque) == ("datetime.date", True)
    assert leaves["device"].value == "cuda:1"
    assert leaves["dtype"].value == "torch.float16"
    assert leaves["size"].value == [2, 3]
    assert (leaves["part"].type, leaves["part"].opaque) == ("argparse.Namespace", True)
    assert leaves["big"].value["1999"] == 1999
    json.dumps([leaf.value for leaf in leaves.values()])


def test_omegaconf_by_its_contents() -> None:
    node = Object(Global("omegaconf.nodes", "AnyNode"), ())
    node.state = Dict(["_metadata", None, "_val", 0.5])
    inner = Object(Global("omegaconf.listconfig", "ListConfig"), ())
    inner.state = Dict(["_content", [node], "_metadata", None])
    root = Object(Global("omegaconf.dictconfig", "DictConfig"), ())
    root.state = Dict(["_metadata", None, "_content", Dict(["lr", node, "many", inner]), "_parent", root])
    found = assemble(Dict(["cfg", root]), ReadOptions())
    values = {leaf.path: leaf.value for leaf in found.objects}
    assert values == {"cfg": None, "cfg.lr": 0.5, "cfg.many": None, "cfg.many.0": 0.5}


def test_cycles_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["self"] = loop
    loop["list"] = [loop]
    holder = Unknown(x=torch.zeros(1))
    holder.me = holder
    loop["holder"] = holder
    found = saved(tmp_path, loop, section="all")
    assert list(found.tensors) == ["w", "holder.x"]
    assert {leaf.path for leaf in found.objects if leaf.type == "cycle"} == {"self", "list.0", "holder.me"}


# Modules


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Identity()])
        self.heads = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.PReLU()})
        self.tied = self.blocks[0]
        self.same = torch.nn.Linear(2, 2)
        self.same.weight = self.blocks[0].weight
        self.own = torch.nn.Parameter(torch.randn(2))
        self.register_parameter("absent", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.register_buffer("no", None)
        self.plain = torch.arange(5)
        self.listed = [torch.arange(6)]
        self.rnn = torch.nn.LSTM(2, 3)
        self.normed = torch.nn.utils.weight_norm(torch.nn.Linear(2, 2))
        self.listing = torch.nn.ParameterList([torch.randn(1), torch.randn(2)])
        self.mapping = torch.nn.ParameterDict({"p": torch.nn.Parameter(torch.randn(2))})
        self.hidden = 7


def _module() -> Any:
    module = Net()
    with torch.no_grad():  # a tensor computed from others cannot be pickled
        del module.normed.weight
        module.normed.weight = torch.randn(2, 2)
    return module


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_module_is_its_state_dict(tmp_path: Path, protocol: int) -> None:
    module = _module()
    found = saved(tmp_path, module, pickle_protocol=protocol)
    same_all(found, module.state_dict())
    assert found.tensors["conv.weight"].kind == "parameter"
    assert found.tensors["kept"].kind == "buffer"
    leaves = {leaf.path: leaf for leaf in found.objects}
    assert leaves["passing"].type == "int64[4]"
    assert {"plain", "listed.0", "normed.weight"} <= set(leaves)
    assert leaves["hidden"].value == 7
    assert leaves["conv"].type == "torch.nn.modules.conv.Conv2d"
    assert not any(path.startswith("rnn._flat_weights.") for path in leaves)
    (note,) = found.findings
    assert (note.code, note.severity) == ("tensors-outside", "note")
    assert note.message.startswith("4 tensors stand outside the state dict: ")
    everything = saved(tmp_path, module, section="all")
    assert set(everything.tensors) >= set(found.tensors) | {"passing", "plain", "listed.0"}
    assert not everything.findings


def test_modules_in_trainer_checkpoints(tmp_path: Path) -> None:
    module = _module()
    found = saved(tmp_path, {"epoch": 1, "model": module, "ema": None, "optimizer": None})
    assert found.section == "model"
    same_all(found, module.state_dict())
    found = saved(tmp_path, {"epoch": 1, "model": None, "ema": module.half()})
    assert found.section == "ema"
    same_all(found, module.state_dict())
    assert [finding.code for finding in found.findings] == ["ema-chosen", "tensors-outside"]


def test_wrapped_modules(tmp_path: Path) -> None:
    module = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    same_all(saved(tmp_path, module), module.state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))
    averaged.avg_fn = averaged.multi_avg_fn = None
    same_all(saved(tmp_path, averaged), averaged.state_dict())
    traced = torch.nn.TransformerEncoderLayer(4, 2, 8)
    same_all(saved(tmp_path, traced), traced.state_dict())


def test_modules_of_old_torch_have_no_transient_buffers(tmp_path: Path) -> None:
    module = _module()
    for inner in module.modules():
        del inner.__dict__["_non_persistent_buffers_set"]
    names = [*module.conv._parameters]
    assert names == ["weight", "bias"]
    found = saved(tmp_path, module)
    assert "passing" in found.tensors
    assert "kept" in found.tensors


def test_modules_that_hold_each_other(tmp_path: Path) -> None:
    outer, inner = torch.nn.Sequential(), torch.nn.Linear(1, 1)
    outer.add_module("inner", inner)
    inner.__dict__["parent"] = outer
    outer.__dict__["me"] = outer
    found = saved(tmp_path, outer)
    assert list(found.tensors) == ["inner.weight", "inner.bias"]


def test_script_attributes() -> None:
    ref = StorageRef(MemoryStorage(bytes(8), "s"), dtype("float32"), 8)
    weight = Object(Global("torch._utils", "_rebuild_tensor_v2"), (ref, 0, (2,), (1,), False, None))
    passing = Object(Global("torch._utils", "_rebuild_tensor_v2"), (ref, 0, (1,), (1,), False, None))
    given = [("a.w", weight, "parameter"), ("a.b", weight, "buffer"), ("a.c", passing, ""), ("a.n", 3, "")]
    found = assemble_attributes(given, ReadOptions())
    assert {name: tensor.kind for name, tensor in found.tensors.items()} == {
        "a.w": "parameter",
        "a.b": "buffer",
    }
    assert [leaf.path for leaf in found.objects] == ["a.n", "a.c"]
    assert list(assemble_attributes(given, ReadOptions(section="all")).tensors) == ["a.w", "a.b", "a.c"]


# Sections


def _optimizer() -> dict[str, Any]:
    weights = [torch.nn.Parameter(torch.randn(2)) for _ in range(2)]
    optimizer = torch.optim.Adam(weights)
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer.step()
    return dict(optimizer.state_dict())


_CHOSEN: dict[str, tuple[Callable[[], Any], str]] = {
    "bare": (lambda: _state(2, 3), ""),
    "bare with extra state": (lambda: _state(2) | {"head._extra_state": {"x": 1}}, ""),
    "state_dict": (
        lambda: {"epoch": 1, "state_dict": _state(2), "optimizer": _optimizer(), "best_acc1": torch.tensor(0.5)},
        "state_dict",
    ),
    "lightning": (
        lambda: {
            "epoch": 1,
            "pytorch-lightning_version": "2.4",
            "state_dict": _state(2),
            "loops": {},
            "callbacks": {"ModelCheckpoint{'a': 1}": {"best_model_score": torch.tensor(1.0)}},
            "optimizer_states": [_optimizer()],
            "lr_schedulers": [{}],
            "hyper_parameters": {"lr": 1},
        },
        "state_dict",
    ),
    "ema beside": (lambda: {"model": _state(2), "ema": _state(2), "optimizer": _optimizer(), "args": 1}, "model"),
    "timm": (lambda: {"state_dict": _state(2), "state_dict_ema": _state(2), "arch": "x"}, "state_dict"),
    "ema within": (lambda: {"model": _state(2), "ema": {"model": _state(2)}}, "model"),
    "deepspeed": (lambda: {"module": _state(2), "optimizer": None, "ds_version": "0.1"}, "module"),
    "nested": (lambda: {"model": {"state_dict": _state(2)}, "step": 1}, "model.state_dict"),
    "one unconventional": (lambda: {"epoch": 2, "resnet": _state(2), "rng_state": [torch.ones(3)]}, "resnet"),
    "only ema": (lambda: {"epoch": 2, "model_ema": _state(2)}, "model_ema"),
    "swa": (lambda: {"swa_model": _state(2), "model": _state(1)}, "model"),
    "optimizer alone": (_optimizer, ""),
    "list": (lambda: [torch.ones(1), torch.ones(2)], ""),
    "pair": (lambda: (_state(2), _optimizer()), "0"),
    "resemblyzer": (
        lambda: {"step": 1, "model_state": _state(2), "optimizer_state": _optimizer()}, "model_state",
    ),
    "name of an architecture": (lambda: {"model": "resnet50", "state_dict": _state(2)}, "state_dict"),
    "submodules as dicts": (lambda: {"model": {"encoder": _state(2), "decoder": _state(2)}}, "model"),
    "root with parts": (lambda: _state(2) | {"sub": _state(2)}, ""),
    "empty": (dict, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", _CHOSEN)
def test_the_weights(tmp_path: Path, name: str) -> None:
    make, section = _CHOSEN[name]
    value = make()
    found = saved(tmp_path, value)
    assert found.section == section
    inner = value
    for key in section.split(".") if section else ():
        inner = inner[int(key) if key.isdecimal() else key]
    if isinstance(inner, dict) and all(isinstance(v, torch.Tensor) for v in inner.values()):
        same_all(found, inner)
    assert bool(found.sections) == bool(section)
    everything = saved(tmp_path, value, section="all")
    assert everything.section == ""
    assert {f"{section}.{n}" if section else n for n in found.tensors} <= set(everything.tensors)


def test_sections_are_listed(tmp_path: Path) -> None:
    value = {
        "epoch": 1,
        "model": _state(2, 3),
        "ema": {"module": _state(2, 3)},
        "optimizer": _optimizer(),
        "rng_state": [torch.zeros(7, dtype=torch.uint8)],
    }
    found = saved(tmp_path, value)
    assert [(s.name, s.role, s.tensors, s.nbytes) for s in found.sections] == [
        ("model", "weights", 2, 20),
        ("ema", "ema", 2, 20),
        ("optimizer", "optimizer", 6, 40),
        ("rng_state", "other", 1, 7),
    ]
    (finding,) = found.findings
    assert (finding.code, finding.where, finding.hint) == ("ema-left-out", "ema", "--section ema reads it")


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("ema", ["model.layer0.weight"]),
        ("ema.model", ["layer0.weight"]),
        ("optimizer.state.0", ["step", "exp_avg", "exp_avg_sq"]),
        ("model.layer0.weight", ["tensor"]),
    ],
)
def test_a_section_by_name(tmp_path: Path, section: str, names: list[str]) -> None:
    value = {"model": _state(2), "ema": {"model": _state(2)}, "optimizer": _optimizer()}
    found = saved(tmp_path, value, section=section)
    assert found.section == section
    assert list(found.tensors) == names


def test_a_section_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        saved(tmp_path, {"model": _state(2), "epoch": 3}, section="epoch")
    assert caught.value.code == "section-unknown"
    assert "model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"generator": 1, "discriminator": 1, "step": 0}, ["generator", "discriminator"]),
        ({"model": 1, "state_dict": 1}, ["model", "state_dict"]),
        ({"student": 1, "teacher net's": 1}, ["student", "'teacher net'\"'\"'s'"]),
    ],
)
def test_ambiguity_names_the_choices(tmp_path: Path, value: dict[str, int], names: list[str]) -> None:
    filled = {key: _state(2) if want else 3 for key, want in value.items()}
    path = save(tmp_path, filled)
    with pytest.raises(CkptError) as caught:
        read(path)
    assert caught.value.code == "ambiguous-section"
    assert str(caught.value.hint).splitlines() == [f"--section {name}" for name in [*names, "all"]]
    shown = read(path, ambiguous="all")
    assert len(shown.tensors) == 2
    assert shown.section == ""
    assert [finding.code for finding in shown.findings] == ["ambiguous-section"]
    assert set(_sections(shown).values()) == {"weights"}


# Metadata


def test_versions_of_a_state_dict(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)).state_dict()
    state._metadata["0"]["ckptkit"] = {"nested": [1]}
    want = {"": {"version": 1}, "0": {"version": 2}, "1": {"version": 1}}
    assert json.loads(saved(tmp_path, state).metadata["_metadata"]) == want
    trainer = {"state_dict": state, "epoch": 1}
    assert json.loads(saved(tmp_path, trainer).metadata["_metadata"]) == want
    everything = saved(tmp_path, trainer, section="all").metadata
    assert json.loads(everything["_metadata"]) == {
        "state_dict": {"version": 1},
        "state_dict.0": {"version": 2},
        "state_dict.1": {"version": 1},
    }
    assert saved(tmp_path, {"other": _state(1)} | trainer, section="other").metadata == {}


def test_metadata_written_by_us(tmp_path: Path) -> None:
    state = collections.OrderedDict(w=torch.ones(1))
    state.ckptkit_metadata = {"author": "me", "number": 3}  # type: ignore[attr-defined]
    assert saved(tmp_path, state).metadata == {"author": "me"}


# Values made to blow up


def _shared(opcode: bytes, levels: int = 60) -> bytes:
    return opcode + b"2\x86" * levels + b"."


def _laughs(levels: int = 60, width: int = 10) -> bytes:
    """Lists of the same list, over and over."""
    wraps = (b"](" + b"h%c" % i * width + b"eq%c" % (i + 1) for i in range(levels))
    return b"]q\x00Na" + b"".join(wraps) + b"."


def _deep(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1) + b"."


def _long_names() -> bytes:
    """A dict of 900 entries below a key of a megabyte."""
    key = b"X\x00\x00\x10\x00" + b"k" * (1 << 20)
    inner = b"}(" + b"".join(b"J%bK\x01" % i.to_bytes(4, "little") for i in range(900)) + b"u"
    return b"}" + key + inner + b"s."


def _shared_arrays() -> bytes:
    """A thousand arrays over the same ten million bytes of text."""
    import struct

    text = b"X" + struct.pack("<I", 10_000_000) + b"a" * 10_000_000 + b"q\x00"
    one = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        b"(K\x01J\x80\x96\x98\x00\x85cnumpy\ndtype\nU\x02u1\x89\x88\x87R\x89"
        b"c_codecs\nencode\nh\x00U\x06latin1\x86Rtb"
    )
    return text + b"0](" + one * 1_000 + b"e."


_BLOWN: dict[str, Callable[[], bytes]] = {
    "laughs": _laughs,
    "shared pairs": lambda: _shared(b"]"),
    "shared dicts": lambda: b"}q\x00K\x01Ns" + b"".join(
        b"}(K\x01h%cK\x02h%cuq%c" % (i, i, i + 1) for i in range(100)
    ) + b".",
    "shared objects": lambda: b"ca\nb\nq\xfe0]q\x00" + b"".join(
        b"h\xfe)R}(K\x01h%cK\x02h%cubq%c" % (i, i, i + 1) for i in range(100)
    ) + b".",
    "deep lists": lambda: _deep(200_000),
    "deep tuples": lambda: b")" + b"\x85" * 200_000 + b".",
    "deep objects": lambda: b"ca\nb\nq\x00)R" + b"\x85h\x000h\x00)R\x86" * 60_000 + b".",
    "long names": _long_names,
}  # fmt: skip


@pytest.mark.parametrize("name", _BLOWN)
def test_values_that_blow_up(name: str) -> None:
    data = _BLOWN[name]()
    value = machine.load(data).value
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(CkptError) as caught:
        assemble(value, ReadOptions())
    assert caught.value.code == "over-budget"
    assert len(str(caught.value)) < 400
    assert time.process_time() - start < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_what_is_shared_is_held_once() -> None:
    data = _shared_arrays()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = _unpickled(data)
    assert len(found.tensors) == 1_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert time.process_time() - start < 2


def test_keys_that_kill_are_names_by_position() -> None:
    shared = b")" + b"2\x86" * 60
    deep = b")" + b"\x85" * 100_000
    data = b"}(" + shared + b"K\x01" + deep + b"K\x02ca\nb\n)RK\x03u."
    assert {leaf.path: leaf.value for leaf in _unpickled(data).objects} == {"#0": 1, "#1": 2, "#2": 3}


def test_the_same_state_dict_twice_is_fine(tmp_path: Path) -> None:
    state = {f"w{i}": torch.ones(1) for i in range(3_000)}
    found = saved(tmp_path, {"model": state, "ema": state, "best": state}, section="all")
    assert len(found.tensors) == 9_000
    assert found.tensors["model.w7"].storage == found.tensors["ema.w7"].storage


def _long_twice() -> bytes:
    key = "k" * 300
    return pickle.dumps({key: {"end": np.ones(1)}, key + ".end": np.ones(1)})


@pytest.mark.parametrize(
    ("data", "code", "start", "end"),
    [
        (b"\x80\x02" + b"]" * 2_000 + b"a" * 1_999 + b".", "over-budget", "0.0.0", ".0.0.0"),
        (_long_twice(), "name-collision", "kkk", "kkk.end"),
    ],
    ids=["deep", "collision"],
)
def test_errors_begin_with_the_file(tmp_path: Path, data: bytes, code: str, start: str, end: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(data)
    with pytest.raises(CkptError) as caught:
        ck.read(path)
    assert caught.value.code == code
    file, _, inner = str(caught.value.where).partition(": ")
    assert file == str(path)
    assert len(inner) == 100
    assert inner.startswith(start)
    assert inner.endswith(end)
    assert "…" in inner
