"""Proving: models run on inputs of their own signature, their outputs compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptkit as ck
from ckptkit.match.proof.compare import Tolerance, compare
from ckptkit.match.proof.samples import guesses, read_npz, samples, write_npz
from ckptkit.match.proof.signature import free, signature, sized
from tests.support import Result

onnx = pytest.importorskip("onnx", reason="needs the onnx extra")
pytest.importorskip("onnxruntime", reason="needs the onnx extra")

Run = Callable[..., Result]
W = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
EXACT = Tolerance(0, 0)


def model(path: Path, text: str, **weights: np.ndarray[Any, Any]) -> Path:
    """A model from the text form of its graph, with initializers."""
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    onnx.save(made, path)
    return path


def linear(path: Path, w: np.ndarray[Any, Any] = W, names: tuple[str, str] = ("x", "y")) -> Path:
    x, y = names
    return model(path, f"g (float[N, 4] {x}) => (float[N, 3] {y}) {{ {y} = MatMul({x}, w) }}", w=w)


def test_equal_models(tmp_path: Path) -> None:
    proof = ck.prove(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx"))
    assert proof.verdict == "equal"
    assert [run.name for run in proof.runs] == ["random 1", "random 2", "random 3", "zeros", "large"]
    assert {run.inputs["x"] for run in proof.runs} == {"float32[2,4]", "float32[1,4]"}
    assert all(output.max_abs == 0 for run in proof.runs for output in run.outputs)


def test_one_weight_makes_the_difference(tmp_path: Path) -> None:
    w = W.copy()
    w[2, 1] += 0.01
    proof = ck.prove(linear(tmp_path / "a.onnx", w), linear(tmp_path / "b.onnx"))
    assert not proof.equal
    (output,) = proof.runs[0].outputs
    assert output.worst is not None
    assert output.worst[1] == 1  # the column of that weight
    assert output.exceeding == 2  # in both rows, and nowhere else
    assert proof.runs[3].equal  # zeros hide it
    assert ck.prove(linear(tmp_path / "c.onnx", w), tmp_path / "b.onnx", rtol=0.1, atol=0.1).equal


def test_names_may_differ(tmp_path: Path) -> None:
    a = linear(tmp_path / "a.onnx", names=("input", "out"))
    proof = ck.prove(a, linear(tmp_path / "b.onnx"))
    assert proof.equal
    assert proof.runs[0].outputs[0].name == "out"


@pytest.mark.parametrize(
    "other",
    [
        "g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }",
        "g (float[N] x) => (float[N] y) { y = Relu(x) }",
        "g (double[N, 4] x) => (double[N, 4] y) { y = Relu(x) }",
        "g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }",
        "g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x) z = Neg(x) }",
    ],
)
def test_other_signatures_are_refused(tmp_path: Path, other: str) -> None:
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(linear(tmp_path / "a.onnx"), model(tmp_path / "b.onnx", other))
    assert caught.value.code == "signatures-differ"


def test_another_output_shape_or_dtype_is_a_difference(tmp_path: Path) -> None:
    a = model(tmp_path / "a.onnx", "g (float[N, 4] x) => (float16[N, 4] y) { y = Cast<to = 10>(x) }")
    b = model(tmp_path / "b.onnx", "g (float[N, 4] x) => (float[N, 4] y) { y = Identity(x) }")
    c = model(tmp_path / "c.onnx", "g (float[N, 4] x) => (float[M, N] y) { y = Transpose(x) }")
    for left, spec in ((a, "float16[2,4]"), (c, "float32[4,2]")):
        proof = ck.prove(left, b)
        assert not proof.equal
        assert proof.runs[0].outputs[0].a == spec


def test_ids_stay_within_the_table(tmp_path: Path) -> None:
    text = """g (int64[N, S] ids, float[N, S] floats, int64[N, S] mask) => (float[N, S, 3] y) {
        shape = Constant<value = int64[1] {-1}>()
        flat = Reshape(floats, shape)
        cast = Cast<to = 7>(flat)
        z = Gather(small, cast)
        y = Gather(table, ids)
    }"""
    path = model(tmp_path / "a.onnx", text, table=np.zeros((11, 3), "f4"), small=np.zeros((5, 3), "f4"))
    inputs = signature(ck.read(str(path)))
    assert [one.rows for one in inputs] == [11, 5, None]
    made = list(samples(inputs, {"N": 4, "S": 64}, {}, 0, 3))
    ids = np.concatenate([s.arrays["ids"].ravel() for s in made])
    assert (ids.min(), ids.max()) == (0, 10)
    floats = made[0].arrays["floats"]
    assert set(floats.ravel()) == {0, 1, 2, 3, 4}
    mask = made[0].arrays["mask"]
    assert (np.diff(mask, axis=1) <= 0).all()  # padding at the end
    assert mask[:, 0].all()
    assert (made[-1].name, made[-1].arrays["ids"].min()) == ("large", 10)
    assert ck.prove(path, path).equal


def test_samples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    inputs = signature(ck.read(str(linear(tmp_path / "a.onnx"))))
    one, same, other = (
        np.concatenate([s.arrays["x"].ravel() for s in samples(inputs, {"N": 3}, {}, seed, 2)])
        for seed in (1, 1, 3)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_a_dimension_may_be_a_sum(tmp_path: Path) -> None:
    text = "g (float[batch, past] x, float[batch, Q] y) => (float[batch, M] z) { z = Concat<axis = 1>(x, y) }"
    inputs = signature(ck.read(str(model(tmp_path / "a.onnx", text))))
    assert free(inputs) == {"batch": True, "past": False, "Q": False}
    assert sized((2, "past + 1", "a + b"), {"past": 4, "a": 1, "b": 2}) == (2, 5, 3)
    assert next(guesses(inputs, {"past": 3, "Q": 4})) == {"batch": 2, "past": 3, "Q": 4}


def test_sizes_are_found_that_the_reference_runs_with(tmp_path: Path) -> None:
    text = """g (float[N, L] x) => (float[M, 32] y) {
        shape = Constant<value = int64[2] {-1, 32}>()
        pads = Constant<value = int64[4] {0, -9, 0, 0}>()
        cut = Pad(x, pads)
        whole = Reshape(x, shape)
        y = Relu(whole)
    }"""
    path = model(tmp_path / "a.onnx", text)
    proof = ck.prove(path, path)
    assert proof.equal
    assert proof.runs[0].inputs == {"x": "float32[2,16]"}
    assert "random 2" in proof.skipped  # one row of 24
    assert ck.prove(path, path, dims={"L": 96}).runs[0].inputs == {"x": "float32[2,96]"}
    with pytest.raises(ck.CkptError, match="no free dimension"):
        ck.prove(path, path, dims={"K": 1})


def test_what_only_one_refuses_is_a_difference(tmp_path: Path) -> None:
    text = "g (float[N, L] x) => (float[N, M] y) {{ {} }}"
    strict = "s = Constant<value = int64[2] {-1, 7}>() y = Reshape(x, s)"
    a = model(tmp_path / "a.onnx", text.format(strict))
    proof = ck.prove(a, model(tmp_path / "b.onnx", text.format("y = Exp(x)")))
    assert not proof.equal
    assert "Reshape" in proof.runs[0].refused


def test_own_inputs_and_replay(tmp_path: Path, run: Run) -> None:
    a, b = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx")
    x = np.ones((7, 4), np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    proof = ck.prove(a, b, inputs=[tmp_path / "in.npz"], save=tmp_path / "runs")
    assert [run.inputs for run in proof.runs] == [{"x": "float32[7,4]"}]
    with np.load(tmp_path / "runs" / "0-in.b.npz") as held:
        assert np.allclose(held["y"], x @ W)
    again = run("prove", a, "--against", b, "--inputs", tmp_path / "runs" / "0-in.inputs.npz", "--json")
    assert again.code == 0
    assert again.json["runs"][0]["inputs"] == {"x": "float32[7,4]"}
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(a, b, save=tmp_path / "runs")
    assert caught.value.code == "exists"


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense"])
def test_inputs_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(ck.CkptError) as caught:
        read_npz(str(tmp_path / "in.npz"))
    assert caught.value.code == "prove-inputs"


def test_inputs_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ck.CkptError) as caught:
        read_npz(str(tmp_path / "in.npz"))
    assert caught.value.code == "prove-inputs"


@pytest.mark.parametrize("names", [("x", "z"), ("z",)])
def test_inputs_of_other_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    a = linear(tmp_path / "a.onnx")
    write_npz(str(tmp_path / "in.npz"), {name: np.ones((1, 4), np.float32) for name in names})
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(a, a, inputs=[tmp_path / "in.npz"])
    assert caught.value.code == "prove-inputs"


def test_a_model_that_onnxruntime_refuses(tmp_path: Path, run: Run) -> None:
    bad = model(tmp_path / "a.onnx", "g (float[N] x) => (float[N] y) { y = NoSuchOperator(x) }")
    done = run("prove", bad, "--against", bad)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("error[model-refused]")


@pytest.mark.parametrize(
    ("a", "b", "equal", "max_abs"),
    [
        ([1.0, np.nan], [1.0, np.nan], True, 0.0),
        ([1.0, np.nan], [1.0, 2.0], False, np.inf),
        ([np.inf, 1.0], [np.inf, 1.0], True, 0.0),
        ([np.inf, 1.0], [-np.inf, 1.0], False, np.inf),
        ([np.inf, 1.0], [3e38, 1.0], False, np.inf),
        ([1.0, 1.5], [1.0, 1.0], False, 0.5),
        ([-0.0], [0.0], True, 0.0),
        ([2**62], [2**62 + 1], False, 0.0),
        ([True], [False], False, 1.0),
        ([], [], True, 0.0),
    ],
)
def test_comparing(a: list[Any], b: list[Any], equal: bool, max_abs: float) -> None:
    found = compare("y", np.array(a), np.array(b), EXACT)
    assert (found.equal, found.max_abs) == (equal, max_abs)
    assert (found.exceeding > 0) is not equal


def test_the_worst_element_is_the_one_farthest_beyond() -> None:
    b = np.array([[1e6, 1.0, 1e-3]], np.float32)
    a = b + np.array([[10, 0, 1e-2]], np.float32)
    found = compare("y", a, b, Tolerance(1e-3, 1e-12))
    assert (found.worst, found.exceeding) == ((0, 2), 1)
    assert found.max_abs == 10


def test_a_module_is_the_reference(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    (tmp_path / "own_models.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(4, 3, bias=False)\nnumber = int\n", "utf-8"
    )
    torch.save({"weight": torch.from_numpy(W.T.copy())}, tmp_path / "w.pt")
    torch.save({"weight": torch.from_numpy(W.T + 1)}, tmp_path / "other.pt")
    torch.save({"bias": torch.zeros(3)}, tmp_path / "misfit.pt")
    a = linear(tmp_path / "a.onnx")
    monkeypatch.chdir(tmp_path)
    line = ("prove", a, "--module", "own_models:build", "--weights")
    refused = run(*line, "w.pt")
    assert (refused.code, refused.stderr.split(":")[0]) == (2, "error[code-refused]")
    assert run(*line, "w.pt", "--allow-code").code == 0
    assert run(*line, "other.pt", "--allow-code").code == 1
    assert "error[module-misfit]" in run(*line, "misfit.pt", "--allow-code").stderr
    for spec in ("own_models:number", "own_models:none", "nowhere:build", "own_models", "os:system('x')"):
        done = run("prove", a, "--module", spec, "--allow-code")
        assert (done.code, done.stderr.split(":")[0]) == (2, "error[module-invalid]"), spec


def test_a_conversion_is_proved_before_it_is_put_in_place(tmp_path: Path, run: Run) -> None:
    a = linear(tmp_path / "a.onnx")
    done = run("convert", a, tmp_path / "b.onnx", "--prove", "--onnx-data", "external")
    assert done.code == 0
    assert f"same outputs as {a}" in done.stdout
    refused = run("convert", a, tmp_path / "b.safetensors", "--prove")
    assert (refused.code, refused.stderr.split(":")[0]) == (2, "error[option-unfit]")
    assert run("convert", a, tmp_path / "c.onnx", "--module", "m:f").code == 2


def test_weights_put_into_a_graph_are_proved_by_their_module(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="needs the torch extra")
    (tmp_path / "other_models.py").write_text(
        "import torch\nclass Bare(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Parameter(torch.zeros(4, 3))\n"
        "    def forward(self, x):\n        return x @ self.w\n"
        "class Twice(Bare):\n    def forward(self, x):\n        return 2 * super().forward(x)\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.from_numpy(W + 1)}, tmp_path / "w.pt")
    linear(tmp_path / "base.onnx")
    line = ("convert", "w.pt", "new.onnx", "--into", "base.onnx", "--prove")
    assert "error[usage]" in run(*line).stderr
    assert "error[code-refused]" in run(*line, "--module", "other_models:Bare").stderr
    wrong = run(*line, "--module", "other_models:Twice", "--allow-code")
    assert (wrong.code, wrong.stderr.split(":")[0]) == (2, "error[prove-failed]")
    assert not (tmp_path / "new.onnx").exists()
    assert run(*line, "--module", "other_models:Bare", "--allow-code").code == 0
    assert (tmp_path / "new.onnx").exists()


def test_types_that_numpy_lacks(tmp_path: Path, run: Run) -> None:
    text = (
        "g (bfloat16[N, 4] x) => (bfloat16[N, 4] y) {{ f = Cast<to = 1>(x) g = {}(f) y = Cast<to = 16>(g) }}"
    )
    a = model(tmp_path / "a.onnx", text.format("Neg"))
    proof = ck.prove(a, model(tmp_path / "b.onnx", text.format("Neg")), save=tmp_path / "runs")
    assert proof.equal
    assert proof.tolerance.rtol == 3e-2
    assert proof.runs[0].outputs[0].a == "bfloat16[2,4]"
    other = model(tmp_path / "c.onnx", text.format("Abs"))
    worst = ck.prove(a, other).runs[0].outputs[0]
    assert worst.exceeding
    assert worst.worst_a == -worst.worst_b  # type: ignore[operator]
    again = tmp_path / "runs" / "0-random-1.inputs.npz"
    assert run("prove", a, "--against", other, "--inputs", again).code == 1
    assert run("prove", a, "--against", tmp_path / "b.onnx", "--inputs", again).code == 0


def test_a_module_that_computes_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="needs the torch extra")
    (tmp_path / "narrow_nets.py").write_text(
        "import torch\nclass Neg(torch.nn.Module):\n    def forward(self, x):\n        return {'a': [-x]}\n",
        "utf-8",
    )
    monkeypatch.chdir(tmp_path)
    text = (
        "g (bfloat16[N, 4] x) => (bfloat16[N, 4] y) { f = Cast<to = 1>(x) g = Neg(f) y = Cast<to = 16>(g) }"
    )
    proof = ck.prove(model(tmp_path / "a.onnx", text), module="narrow_nets:Neg", allow_code=True)
    assert proof.equal
    assert {o.b for o in proof.runs[0].outputs} == {"bfloat16[2,4]"}


def test_strings_sequences_and_optionals(tmp_path: Path) -> None:
    text = "g (string[N] x) => (string[N] y) { y = Identity(x) }"
    a = model(tmp_path / "a.onnx", text)
    assert ck.prove(a, a, save=tmp_path / "runs").equal
    replayed = read_npz(str(tmp_path / "runs" / "0-random-1.inputs.npz"))
    assert ck.prove(a, a, inputs=[tmp_path / "runs" / "0-random-1.inputs.npz"]).equal
    assert replayed.arrays["x"].dtype == object
    text = "g (float[N] x, float[2] z) => (seq(float[N]) y) {{ y = SequenceConstruct(x, {}) }}"
    b, c = (model(tmp_path / f"{last}.onnx", text.format(last)) for last in ("x", "z"))
    assert [o.name for o in ck.prove(b, b, dims={"N": 2}).runs[0].outputs] == ["y.0", "y.1"]
    found = ck.prove(b, c, dims={"N": 2}).runs[0].outputs
    assert [o.equal for o in found] == [True, False]
    longer = model(tmp_path / "l.onnx", text.format("x, x"))
    missing = ck.prove(b, longer).runs[0].outputs[-1]
    assert (missing.name, missing.a, missing.b, missing.equal) == ("y.2", "nothing", "float32[2]", False)
    inputs = model(tmp_path / "s.onnx", "g (seq(float[N]) x) => (int64 y) { y = SequenceLength(x) }")
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(inputs, inputs)
    assert (caught.value.code, "sequence" in caught.value.message) == ("prove-inputs", True)


def test_a_run_that_does_not_end(tmp_path: Path, run: Run) -> None:
    text = """g (float[1] x) => (float[1] y) {
        m = Constant<value = int64 {9000000000000}>() c = Constant<value = bool {1}>()
        y = Loop(m, c, x) <body = b (int64 i, bool cc, float[1] v) => (bool co, float[1] w) {
            co = Identity(cc) w = Add(v, v) }>
    }"""
    path = model(tmp_path / "a.onnx", text)
    done = run("prove", path, "--against", path, "--time-limit", "0.5")
    assert (done.code, done.stderr.split(":")[0]) == (2, "error[time-limit]")


def test_an_output_larger_than_the_machine(tmp_path: Path) -> None:
    text = (
        "g (float[1] x) => (float[M] y) { s = Constant<value = int64[1] {9000000000000}>() y = Expand(x, s) }"
    )
    path = model(tmp_path / "a.onnx", text)
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(path, path)
    assert caught.value.code == "model-refused"


def test_one_arena_for_all_models() -> None:
    from ckptkit.match.proof.runners import _bound_memory

    _bound_memory()
    assert _bound_memory.__wrapped__() in (True, False)  # a second one does no harm


def test_inputs_of_other_names_are_told_by_their_types(tmp_path: Path) -> None:
    text = (
        "g (float[N, 4] {0}, int64[N, 4] {1}) => (float[N, 4] y) {{ f = Cast<to = 1>({1}) y = Add({0}, f) }}"
    )
    a = model(tmp_path / "a.onnx", text.format("x", "ids"))
    turned = "g (int64[N, 4] i, float[N, 4] v) => (float[N, 4] z) { f = Cast<to = 1>(i) z = Add(v, f) }"
    proof = ck.prove(a, model(tmp_path / "b.onnx", turned))
    assert proof.equal
    assert proof.notes == ("inputs of other names: ids is i, x is v", "outputs of other names: y is z")
    half = "g (int64[N, 4] ids, float[N, 4] v) => (float[N, 4] y) { f = Cast<to = 1>(ids) y = Add(v, f) }"
    assert ck.prove(a, model(tmp_path / "c.onnx", half)).notes == ("inputs of other names: x is v",)


def test_chance_is_told_wherever_it_is(tmp_path: Path) -> None:
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If(c) <
            then_branch = t () => (float[2] r) { r = RandomNormal<shape = [2]>() },
            else_branch = e () => (float[2] s) { s = Identity(x) }
        >
    }"""
    path = model(tmp_path / "a.onnx", text)
    assert ck.prove(path, path).notes == ("outputs may depend on chance: RandomNormal",)


def test_what_lies_elsewhere_is_never_opened(tmp_path: Path) -> None:
    """A model whose external data leads out of its folder is refused before onnxruntime sees it."""
    (tmp_path / "secret.bin").write_bytes(b"\0" * 48)
    (tmp_path / "in").mkdir()
    linear(tmp_path / "a.onnx")
    made = onnx.load(tmp_path / "a.onnx")
    (weight,) = made.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = 1
    weight.external_data.add(key="location", value="../secret.bin")
    (tmp_path / "in" / "b.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ck.CkptError) as caught:
        ck.prove(tmp_path / "in" / "b.onnx", tmp_path / "a.onnx")
    assert caught.value.code == "outside-folder"
