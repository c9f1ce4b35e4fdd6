"""Transplants into graphs that are unusual, and with checkpoints that would make a wrong assignment easy."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from ckptkit.core.plan import WriteOptions
from ckptkit.format.onnx import layout
from ckptkit.match.transplant import transplant

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
safetensors = pytest.importorskip("safetensors.numpy", reason="needs the test extra")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

Array = np.ndarray[Any, Any]
FLOAT = TensorProto.FLOAT


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def value(name: str, *shape: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, FLOAT, list(shape) or None)


def save(path: Path, graph: Any, ir: int = 10, **settings: Any) -> Path:
    domains = settings.pop("domains", ())
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    onnx.save(model, path, **settings)
    return path


def weights(path: Path, arrays: Mapping[str, Array]) -> Path:
    safetensors.save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def held(path: Path) -> dict[str, Array]:
    """Every tensor of a written model, by our own reader."""
    graph = ck.read(str(path))
    return {name: graph[name].numpy() for name in graph}


def chain(arrays: Mapping[str, Array], **extra: Any) -> Any:
    """A graph that multiplies by square matrices, one after the other."""
    nodes, last = [], "x"
    for index, name in enumerate(arrays):
        nodes.append(helper.make_node("MatMul", [last, name], [f"h{index}"]))
        last = f"h{index}"
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    inputs = [value("x", 1, 8), *extra.get("inputs", ())]
    return helper.make_graph(nodes, "g", inputs, [value(last, 1, 8)], initializers)


NAMES = ("a", "b", "c")
BASE = {f"layer.{name}": normal(8, 8, seed=k) for k, name in enumerate(NAMES)}
TUNED = {f"layer.{name}": normal(8, 8, seed=9 + k) for k, name in enumerate(NAMES)}


def case(folder: Path, graph: Any, **settings: Any) -> dict[str, Any]:
    """base.onnx, base and tuned; options that put by content."""
    weights(folder / "base.safetensors", settings.pop("origin", BASE))
    weights(folder / "tuned.safetensors", settings.pop("tuned", TUNED))
    save(folder / "base.onnx", graph, **settings)
    return {"into": folder / "base.onnx", "exported_from": folder / "base.safetensors"}


def put(folder: Path, options: Mapping[str, Any], **more: Any) -> dict[str, Array]:
    ck.convert(
        folder / "tuned.safetensors", folder / "new.onnx", verify=True, overwrite=True, **options, **more
    )
    return held(folder / "new.onnx")


def refused(folder: Path, options: Mapping[str, Any], **more: Any) -> ck.CkptError:
    with pytest.raises(ck.CkptError) as caught:
        put(folder, options, **more)
    assert not (folder / "new.onnx").exists()
    return caught.value


def back(folder: Path, options: Mapping[str, Any]) -> None:
    """The base's own weights give the base again, bit for bit."""
    ck.convert(folder / "base.safetensors", folder / "back.onnx", **options)
    assert (folder / "back.onnx").read_bytes() == (folder / "base.onnx").read_bytes()


@pytest.mark.parametrize("ir", [3, 4])
@pytest.mark.parametrize("by_content", [False, True])
def test_initializers_that_are_inputs_too(ir: int, by_content: bool, tmp_path: Path) -> None:
    inputs = [value(name, 8, 8) for name in BASE]
    options = case(tmp_path, chain(BASE, inputs=inputs), ir=ir)
    if not by_content:
        del options["exported_from"]
    back(tmp_path, options)
    new = put(tmp_path, options)
    assert all(np.array_equal(new[name], TUNED[name]) for name in TUNED)
    model = onnx.load(tmp_path / "new.onnx")
    assert [v.name for v in model.graph.input] == ["x", *BASE]


TYPED = {"float_data": "f4", "double_data": "f8", "int32_data": "f2"}


@pytest.mark.parametrize("field", TYPED)
def test_typed_fields(field: str, tmp_path: Path) -> None:
    dtype = TYPED[field]
    arrays = {name: array.astype(dtype) for name, array in BASE.items()}
    graph = chain(arrays)
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        getattr(tensor, field).extend((array.view("u2") if dtype == "f2" else array).ravel().tolist())
    tuned = {name: array.astype(dtype) for name, array in TUNED.items()}
    options = case(tmp_path, graph, origin=arrays, tuned=tuned)
    back(tmp_path, options)
    new = put(tmp_path, options)
    assert all(np.array_equal(new[name], tuned[name]) for name in tuned)
    for tensor in onnx.load(tmp_path / "new.onnx").graph.initializer:
        assert np.array_equal(numpy_helper.to_array(tensor), tuned[tensor.name])


@pytest.mark.parametrize("external", ["inline", "external"])
def test_shapes_stay_inline_and_as_they_are(external: str, tmp_path: Path) -> None:
    graph = chain(BASE)
    shape, long = np.array([1, -1, 2], "i8"), np.arange(300, dtype="i8")
    graph.initializer.append(numpy_helper.from_array(shape, "shape"))
    graph.initializer.append(numpy_helper.from_array(long, "long"))
    graph.node.append(helper.make_node("Reshape", ["h2", "shape"], ["y"]))
    options = case(tmp_path, graph)
    new = put(tmp_path, options, external=external)
    assert np.array_equal(new["shape"], shape)
    assert np.array_equal(new["long"], long)
    model = onnx.load(tmp_path / "new.onnx", load_external_data=False)
    (stored,) = [tensor for tensor in model.graph.initializer if tensor.name == "shape"]
    assert stored.data_location == TensorProto.DEFAULT
    assert stored.raw_data == shape.tobytes()


def test_one_initializer_for_two_names(tmp_path: Path) -> None:
    """Tied weights: as long as they stay tied there is a place for them."""
    tied = {"embed": BASE["layer.a"], "head": BASE["layer.a"], "other": BASE["layer.b"]}
    graph = chain({"embed": tied["embed"], "other": tied["other"]})
    graph.node.append(helper.make_node("MatMul", ["h1", "embed"], ["again"]))
    now = {"embed": TUNED["layer.a"], "head": TUNED["layer.a"], "other": TUNED["layer.b"]}
    options = case(tmp_path, graph, origin=tied, tuned=now)
    back(tmp_path, options)
    assert np.array_equal(put(tmp_path, options)["embed"], now["embed"])
    (tmp_path / "new.onnx").unlink()
    weights(tmp_path / "tuned.safetensors", {**now, "head": TUNED["layer.c"]})
    assert refused(tmp_path, options).code == "weights-unused"


def test_foreign_domains_are_carried_untouched(tmp_path: Path) -> None:
    graph = chain(BASE)
    graph.node.append(
        helper.make_node(
            "FusedThing", ["h2", "layer.a"], ["f"], domain="com.microsoft", factor=2.5, table=[1, 2]
        )
    )
    graph.node.append(
        helper.make_node(
            "LinearClassifier",
            ["h2"],
            ["l", "p"],
            domain="ai.onnx.ml",
            coefficients=[0.5] * 2000,
            intercepts=[1.0],
        )
    )
    options = case(tmp_path, graph, domains=("com.microsoft", "ai.onnx.ml"))
    back(tmp_path, options)
    put(tmp_path, options)
    was, now = (onnx.load(tmp_path / name) for name in ("base.onnx", "new.onnx"))
    assert was.graph.node == now.graph.node
    assert was.opset_import == now.opset_import


def test_weights_within_branches_and_loops(tmp_path: Path) -> None:
    """Both branches of an If and the body of a Loop hold weights, one of them captured from outside."""
    true = numpy_helper.from_array(np.array(True), "yes")
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])], "then", [], [value("t", 1, 8)],
        [numpy_helper.from_array(BASE["layer.a"], "w")],
    )  # fmt: skip
    other = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(BASE["layer.b"], "w")),
            helper.make_node("MatMul", ["x", "w"], ["e"]),
        ],
        "else", [], [value("e", 1, 8)],
    )  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("MatMul", ["v", "outer"], ["u"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []), value("v", 1, 8),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), value("u", 1, 8)],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["yes"], ["h"], name="choice", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["times", "yes", "h"], ["y"], name="loop", body=body),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, 8)], [value("y", 1, 8)],
        [true, numpy_helper.from_array(np.array(3), "times"), numpy_helper.from_array(BASE["layer.c"], "outer")],
    )  # fmt: skip
    options = case(tmp_path, graph)
    back(tmp_path, options)
    new = put(tmp_path, options)
    assert np.array_equal(new["choice/then_branch/w"], TUNED["layer.a"])
    assert np.array_equal(new["choice/else_branch/w"], TUNED["layer.b"])
    assert np.array_equal(new["outer"], TUNED["layer.c"])
    runtime = pytest.importorskip("onnxruntime", reason="needs the onnx extra")
    session = runtime.InferenceSession(str(tmp_path / "new.onnx"), providers=["CPUExecutionProvider"])
    x = normal(1, 8, seed=77)
    expected = x @ TUNED["layer.a"] @ np.linalg.matrix_power(TUNED["layer.c"].astype("f8"), 3)
    assert np.allclose(session.run(None, {"x": x})[0], expected, rtol=1e-3, atol=1e-4)


def test_a_graph_of_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Its data is external, and a hole for the most part: nothing of it is read or written but the weights."""
    sizes = {"layer.a": (8, 8), "large": (3 << 26, 4)}  # 3 GiB
    data = tmp_path / "base.data"
    with open(data, "wb") as file:
        file.write(BASE["layer.a"].tobytes())
        file.truncate(256 + (3 << 30))
    initializers = []
    offset = 0
    for name, shape in sizes.items():
        tensor = TensorProto(name=name, data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        length = 4 * int(np.prod(shape))
        for key, text in (("location", "base.data"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(text))
        offset += length
        initializers.append(tensor)
    nodes = [helper.make_node("MatMul", ["x", "layer.a"], ["y"])]
    save(
        tmp_path / "base.onnx",
        helper.make_graph(nodes, "g", [value("x", 1, 8)], [value("y", 1, 8)], initializers),
    )
    base = ck.read(str(tmp_path / "base.onnx"))
    assert base.nbytes > 2 << 30
    tuned = ck.read(str(weights(tmp_path / "t", {"layer.a": TUNED["layer.a"]})))
    large = {name: tensor for name, tensor in base.items() if name == "large"}
    whole = replace(tuned, tensors={**tuned.tensors, **large})
    done = transplant(whole, base)
    assert [placed.name for placed in done.weights] == list(sizes)
    written = layout(done.graph, "new.onnx", WriteOptions())
    assert [file.path for file in written.files] == ["new.onnx.data", "new.onnx"]
    assert written.files[0].size >= 3 << 30
    assert written.files[1].size < 4096
    with pytest.raises(ck.CkptError, match="protobuf reads no more"):
        layout(done.graph, "new.onnx", WriteOptions(external="inline"))


@pytest.mark.parametrize("location", ["../base.data", "/etc/hostname", "sub/../../base.data", "link"])
def test_external_data_with_path_games_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "base.data").write_bytes(BASE["layer.a"].tobytes())
    os.symlink(tmp_path / "base.data", folder / "link")
    tensor = TensorProto(name="layer.a", data_type=FLOAT, dims=(8, 8), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    options = case(folder, chain({}), origin=BASE)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "layer.a"], ["y"])],
        "g",
        [value("x", 1, 8)],
        [value("y", 1, 8)],
        [tensor],
    )
    save(folder / "base.onnx", graph)
    assert refused(folder, options).code == "outside-folder"


def test_quantized_graphs_are_refused_by_name(tmp_path: Path) -> None:
    """A quantised weight is none of the checkpoint's: the refusal says which."""
    eight = np.round(BASE["layer.a"] * 40).astype("i1")
    nodes = [
        helper.make_node("DequantizeLinear", ["layer.a_quantized", "layer.a_scale", "layer.a_zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, 8)], [value("y", 1, 8)],
        [
            numpy_helper.from_array(eight, "layer.a_quantized"),
            numpy_helper.from_array(np.float32(0.025), "layer.a_scale"),
            numpy_helper.from_array(np.int8(0), "layer.a_zero"),
        ],
    )  # fmt: skip
    options = case(tmp_path, graph, origin={"layer.a": BASE["layer.a"]}, tuned={"layer.a": TUNED["layer.a"]})
    for some in (options, {"into": options["into"]}):
        error = refused(tmp_path, some)
        assert error.code == "transplant-unaccounted"
        assert "quanti" in error.message
        assert error.hint is not None


# What a wrong assignment could come from ------------------------------------------------------------------------------


def renamed(graph: Any) -> Any:
    """The graph with names that say nothing, in another order."""
    names = {tensor.name: f"t{k}" for k, tensor in enumerate(reversed(graph.initializer))}
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return graph


@pytest.mark.parametrize("wide", [8, 160])  # below and above where tensors are told apart by their ends
def test_names_that_were_swapped(wide: int, tmp_path: Path) -> None:
    """The values of the export decide, not the names."""
    base = {name: normal(wide, wide, seed=k) for k, name in enumerate(BASE)}
    tuned = {name: normal(wide, wide, seed=9 + k) for k, name in enumerate(BASE)}
    swapped = dict(zip(base, [base["layer.b"], base["layer.a"], base["layer.c"]], strict=True))
    options = case(tmp_path, chain(swapped), origin=base, tuned=tuned)
    new = put(tmp_path, options)
    assert np.array_equal(new["layer.a"], tuned["layer.b"])
    assert np.array_equal(new["layer.b"], tuned["layer.a"])
    assert np.array_equal(new["layer.c"], tuned["layer.c"])
    back(tmp_path, options)


@pytest.mark.parametrize("fill", [0.0, 1.0, np.nan, None])
def test_equal_layers_under_other_names_are_not_guessed(fill: float | None, tmp_path: Path) -> None:
    same = normal(8, 8) if fill is None else np.full((8, 8), fill, "f4")
    options = case(tmp_path, renamed(chain(dict.fromkeys(BASE, same))), origin=dict.fromkeys(BASE, same))
    assert refused(tmp_path, options).code == "weights-ambiguous"
    back(tmp_path, options)


def test_equal_layers_under_their_own_names(tmp_path: Path) -> None:
    same = normal(8, 8)
    options = case(tmp_path, chain(dict.fromkeys(BASE, same)), origin=dict.fromkeys(BASE, same))
    new = put(tmp_path, options)
    assert all(np.array_equal(new[name], TUNED[name]) for name in TUNED)


@pytest.mark.parametrize("wide", [8, 160])
def test_values_that_make_no_sense(wide: int, tmp_path: Path) -> None:
    """NaN of several kinds, infinities and zeros of both signs are bits like others."""
    base = {name: normal(wide, wide, seed=k) for k, name in enumerate(BASE)}
    odd = np.array([np.nan, -np.inf, -0.0, 0.0, np.inf], "f4")
    for k, array in enumerate(base.values()):
        array.reshape(-1)[1:6] = np.roll(odd, k)
        array.view("u4").reshape(-1)[7] = 0x7FC00001 + k
    tuned = {name: normal(wide, wide, seed=9 + k) for k, name in enumerate(BASE)}
    options = case(tmp_path, renamed(chain(base)), origin=base, tuned=tuned)
    back(tmp_path, options)
    new = put(tmp_path, options)
    assert {name: array.tobytes() for name, array in new.items()} == {
        f"t{2 - k}": tuned[name].tobytes() for k, name in enumerate(tuned)
    }
    weights(
        tmp_path / "tuned.safetensors", {name: np.full_like(array, np.nan) for name, array in base.items()}
    )
    assert all(np.isnan(array).all() for array in put(tmp_path, options).values())


@pytest.mark.parametrize("wide", [8, 160])
def test_layers_that_differ_in_one_bit(wide: int, tmp_path: Path) -> None:
    same = normal(wide, wide)
    base = {name: same.copy() for name in BASE}
    for k, array in enumerate(base.values()):
        array.view("u4").reshape(-1)[wide] ^= k
    tuned = {name: normal(wide, wide, seed=9 + k) for k, name in enumerate(BASE)}
    options = case(tmp_path, renamed(chain(base)), origin=base, tuned=tuned)
    new = put(tmp_path, options)
    assert {name: array.tobytes() for name, array in new.items()} == {
        f"t{2 - k}": tuned[name].tobytes() for k, name in enumerate(tuned)
    }


def test_square_layers_transposed_by_the_exporter(tmp_path: Path) -> None:
    turned = {
        "layer.a": BASE["layer.a"].T.copy(),
        "layer.b": BASE["layer.b"],
        "layer.c": BASE["layer.c"].T.copy(),
    }
    options = case(tmp_path, renamed(chain(turned)))
    back(tmp_path, options)
    new = put(tmp_path, options)
    assert np.array_equal(new["t2"], TUNED["layer.a"].T)
    assert np.array_equal(new["t1"], TUNED["layer.b"])
    assert np.array_equal(new["t0"], TUNED["layer.c"].T)


SYMMETRIC = {
    "zeros": np.zeros((8, 8), "f4"),
    "identity": np.eye(8, dtype="f4"),
    "symmetric": BASE["layer.c"] + BASE["layer.c"].T,
}


@pytest.mark.parametrize("kind", SYMMETRIC)
def test_what_looks_the_same_transposed_is_not_guessed(kind: str, tmp_path: Path) -> None:
    """A projection that begins as zeros, or as the identity: whether the exporter transposed it no bytes tell."""
    base = {**BASE, "layer.c": SYMMETRIC[kind]}
    options = case(tmp_path, renamed(chain(base)), origin=base)
    error = refused(tmp_path, options)
    assert error.code == "weights-ambiguous"
    assert "same in any layout" in error.message
    back(tmp_path, options)


def test_zeros_of_another_shape_are_not_guessed(tmp_path: Path) -> None:
    base = {"layer.a": np.zeros((8, 4), "f4"), "layer.b": BASE["layer.b"]}
    nodes = [
        helper.make_node("MatMul", ["x", "t"], ["h"]),
        helper.make_node("MatMul", ["h", "layer.b"], ["y"]),
    ]
    tensors = [
        numpy_helper.from_array(array, name)
        for name, array in (("t", base["layer.a"].T), ("layer.b", base["layer.b"]))
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 1, 4)], [value("y", 1, 8)], tensors)
    options = case(tmp_path, graph, origin=base, tuned={"layer.a": normal(8, 4), "layer.b": TUNED["layer.b"]})
    assert refused(tmp_path, options).code in ("weights-ambiguous", "weights-unused")
    back(tmp_path, options)


@pytest.mark.parametrize(
    ("origin", "tuned", "code"),
    [
        (TUNED, TUNED, "transplant-unaccounted"),  # not what it was exported from
        ({**BASE, "layer.b": TUNED["layer.b"]}, TUNED, "transplant-unaccounted"),
        ({**BASE, "more": normal(3, 3)}, {**TUNED, "more": normal(3, 3, seed=5)}, "weights-unused"),
        (BASE, {name: TUNED[name] for name in list(TUNED)[:2]}, "transplant-missing"),
        (BASE, {**TUNED, "more": normal(3, 3)}, "weights-unused"),
        (BASE, {**TUNED, "layer.a": TUNED["layer.a"].reshape(4, 16)}, "transplant-shape"),
        (BASE, {**TUNED, "layer.a": TUNED["layer.a"].astype("i4")}, "graph-typed"),
    ],
    ids=["wrong origin", "half wrong", "extra in both", "missing", "extra", "reshaped", "integers"],
)  # fmt: skip
def test_checkpoints_that_do_not_fit(
    origin: Mapping[str, Array], tuned: Mapping[str, Array], code: str, tmp_path: Path
) -> None:
    options = case(tmp_path, renamed(chain(BASE)), origin=origin, tuned=tuned)
    assert refused(tmp_path, options).code == code


def model(
    folder: Path, graph: Mapping[str, Array], origin: Mapping[str, Array], tuned: Mapping[str, Array]
) -> Any:
    """A graph that adds up everything it holds; nobody runs it."""
    nodes = [helper.make_node("Sum", list(graph), ["y"])]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.items()]
    return case(
        folder,
        helper.make_graph(nodes, "g", [value("x", 1)], [value("y", 1)], tensors),
        origin=origin,
        tuned=tuned,
    )


def test_a_part_that_was_zero_is_not_left_behind(tmp_path: Path) -> None:
    """A joined bias cut in three, of which one part began as zeros and was trained."""
    base = {"bias": np.concatenate([normal(8, seed=1), np.zeros(8, "f4"), normal(8, seed=2)])}
    cut = {"q": base["bias"][:8], "k": base["bias"][8:16], "v": base["bias"][16:]}
    options = model(tmp_path, cut, base, {"bias": normal(24, seed=5)})
    error = refused(tmp_path, options)
    assert error.code == "weights-ambiguous"
    assert "only parts" in error.message
    back(tmp_path, options)


def test_a_part_of_several_weights_is_not_guessed(tmp_path: Path) -> None:
    one, two = normal(6, 4, seed=1), normal(6, 4, seed=2)
    two[:3] = one[:3]
    base, tuned = {"one": one, "two": two}, {"one": normal(6, 4, seed=3), "two": normal(6, 4, seed=4)}
    cut = {"a": one[:3], "b": one[3:], "c": two[:3], "d": two[3:]}
    assert refused(tmp_path, model(tmp_path, cut, base, tuned)).code == "weights-ambiguous"


def test_a_weight_that_is_another_one_transposed_is_not_guessed(tmp_path: Path) -> None:
    one = normal(6, 4, seed=1)
    base, tuned = {"one": one, "two": one.T}, {"one": normal(6, 4, seed=3), "two": normal(4, 6, seed=4)}
    assert refused(tmp_path, model(tmp_path, {"a": one, "b": one.T}, base, tuned)).code == "weights-ambiguous"


def test_a_shift_without_a_mean_is_a_folded_bias(tmp_path: Path) -> None:
    """Where the mean was zero the folded bias is the very shift: yet the new mean belongs into it."""

    def state(seed: int, mean: float) -> dict[str, Array]:
        return {
            "conv.weight": normal(8, 4, 3, 3, seed=seed),
            "bn.weight": normal(8, seed=seed + 1) ** 2 + 1,
            "bn.bias": normal(8, seed=seed + 2),
            "bn.running_mean": normal(8, seed=seed + 3) * np.float32(mean),
            "bn.running_var": normal(8, seed=seed + 4) ** 2 + np.float32(0.5),
        }

    def folded(state: Mapping[str, Array]) -> dict[str, Array]:
        scale = state["bn.weight"] / np.sqrt(state["bn.running_var"] + np.float32(1e-5))
        bias = (np.zeros(8, "f4") - state["bn.running_mean"]) * scale + state["bn.bias"]
        return {"w": state["conv.weight"] * scale.reshape(-1, 1, 1, 1), "b": bias}

    base, tuned = state(0, 0), state(10, 1)
    options = model(tmp_path, folded(base), base, tuned)
    back(tmp_path, options)
    new, expected = put(tmp_path, options), folded(tuned)
    assert all(np.array_equal(new[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("op", "beside", "told"), [("Gemm", "a", True), ("Gemm", "b", False), ("Mul", "a", False)]
)
def test_the_order_of_a_bias_of_zeros_is_that_of_its_weight(
    op: str, beside: str, told: bool, tmp_path: Path
) -> None:
    """Under another name, zeros are the bias of the layer where its own weight stands beside them, and only there."""
    base = {"a.weight": normal(8, 8), "b.weight": normal(8, 8, seed=1), "a.bias": np.zeros(8, "f4")}
    tuned = {name: normal(*array.shape, seed=5) for name, array in base.items()}
    if op == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", f"w{beside}", "t"], ["y"], transB=1)]
    else:
        nodes = [helper.make_node("Mul", ["x", "t"], ["y"])]
    held_in = {"wa": base["a.weight"], "wb": base["b.weight"], "t": base["a.bias"]}
    initializers = [numpy_helper.from_array(array, name) for name, array in held_in.items()]
    graph = helper.make_graph(nodes, "g", [value("x", 1, 8)], [value("y", 1, 8)], initializers)
    options = case(tmp_path, graph, origin=base, tuned=tuned)
    if told:
        assert np.array_equal(put(tmp_path, options)["t"], tuned["a.bias"])
        return
    with pytest.raises(ck.CkptError, match="order there cannot be told") as caught:
        put(tmp_path, options)
    assert caught.value.code == "weights-ambiguous"


def test_a_vector_that_a_folded_product_repeats_is_found(tmp_path: Path) -> None:
    """A product of zeros leaves the bias for each row; the graph has the bias itself as well."""
    base = {"w": normal(8, 8), "b": normal(8)}
    rows = np.broadcast_to(base["b"], (1, 3, 8))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Add", ["h", "first"], ["y"]),
    ]
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in {**base, "first": rows}.items()
    ]
    graph = helper.make_graph(nodes, "g", [value("x", 3, 8)], [value("y", 1, 3, 8)], initializers)
    tuned = {name: normal(*array.shape, seed=5) for name, array in base.items()}
    new = put(tmp_path, case(tmp_path, graph, origin=base, tuned=tuned))
    assert np.array_equal(new["first"], np.broadcast_to(tuned["b"], (1, 3, 8)))


def test_a_table_that_no_weight_explains_is_a_loss(tmp_path: Path) -> None:
    """It may have been computed from weights: kept only where that is confirmed, or where no weight changes."""
    weight, table = normal(3, 4), normal(3, 4, seed=1)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("MatMul", ["h", "table"], ["y"]),
    ]
    kept = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(table, "table")]
    save(tmp_path / "base.onnx", helper.make_graph(nodes, "g", [value("x", 1, 4)], [value("y", 1, 4)], kept))
    safetensors.save_file({"w": weight}, tmp_path / "base.safetensors")
    safetensors.save_file({"w": weight * 2}, tmp_path / "tuned.safetensors")
    into = {"into": tmp_path / "base.onnx", "exported_from": tmp_path / "base.safetensors"}
    for way in (into, {"into": tmp_path / "base.onnx"}):
        with pytest.raises(ck.CkptError) as caught:
            ck.convert(tmp_path / "tuned.safetensors", tmp_path / "new.onnx", **way)
        assert (caught.value.code, caught.value.where) == ("constants-kept", "table")
        assert not (tmp_path / "new.onnx").exists()
        ck.convert(
            tmp_path / "tuned.safetensors", tmp_path / "new.onnx", **way, allow_loss=["constants-kept"]
        )
        (tmp_path / "new.onnx").unlink()
        ck.convert(tmp_path / "base.safetensors", tmp_path / "same.onnx", **way, overwrite=True)
        assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "base.onnx").read_bytes()
