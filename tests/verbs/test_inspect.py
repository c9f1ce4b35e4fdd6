"""The summary of a checkpoint, from its manifest alone."""

from ckptkit.core.dtypes import dtype
from ckptkit.core.files import File
from ckptkit.core.graph import Origin, Section, TensorGraph
from ckptkit.core.storage import FileStorage
from ckptkit.core.tensor import Tensor
from ckptkit.core.views import view
from ckptkit.verbs.inspect import section_of, summarise

FILE = File("x.pt", 1_000_000, 0, 0)


def at(offset: int, kind: str, *shape: int, what: str = "") -> Tensor:
    return Tensor(dtype(kind), shape, FILE, offset, kind=what)


def graph(tensors: dict[str, Tensor], **origin: object) -> TensorGraph:
    return TensorGraph(tensors, Origin("x.pt", "pytorch", files=(FILE,), **origin))  # type: ignore[arg-type]


def test_totals() -> None:
    found = summarise(
        graph(
            {
                "fc.weight": at(0, "float32", 10, 4),
                "bn.running_mean": at(160, "float32", 10),
                "bn.num_batches_tracked": at(200, "int64"),
                "half": at(208, "float16", 3),
            }
        )
    )
    assert (found.tensors, found.elements, found.nbytes, found.stored) == (4, 54, 214, 214)
    assert found.parameters == 43  # neither the running mean nor the counter
    assert found.dtypes == {"float32": (2, 200), "int64": (1, 8), "float16": (1, 6)}
    assert list(found.dtypes) == ["float32", "int64", "float16"]
    assert found.files == 1_000_000


def test_kinds_settle_what_is_a_parameter() -> None:
    tensors = {
        "a.running_mean": at(0, "float32", 4, what="parameter"),
        "b": at(16, "float32", 4, what="buffer"),
    }
    assert summarise(graph(tensors)).parameters == 4


def test_tied_tensors_count_once() -> None:
    tied = {"wte.weight": at(0, "float32", 8, 4), "lm_head.weight": at(0, "float32", 8, 4)}
    found = summarise(graph(tied))
    assert (found.nbytes, found.elements, found.parameters, found.stored) == (128, 32, 32, 128)
    assert found.ties == {"lm_head.weight": "wte.weight"}
    assert found.dtypes == {"float32": (2, 128)}


def test_overlapping_bytes_are_stored_once() -> None:
    found = summarise(
        graph({"whole": at(0, "float32", 8), "half": at(16, "float32", 4), "far": at(64, "uint8", 1)})
    )
    assert (found.nbytes, found.stored) == (49, 33)


def test_views_with_gaps_and_expanded_ones() -> None:
    storage = FileStorage(FILE, 0, 4000)
    column = view(storage, dtype("float32"), (10,), (100,), 0)
    wide = view(storage, dtype("float32"), (1000, 10), (0, 1), 0)
    found = summarise(graph({"column": column}))
    assert (found.nbytes, found.stored, found.slices) == (40, 3604, ("column",))
    found = summarise(graph({"wide": wide}))
    assert (found.nbytes, found.stored, found.slices) == (40_000, 40, ())


def test_quantised_weights_count_as_what_they_stand_for() -> None:
    tensors = {
        "l.qweight": at(0, "int32", 8, 32),
        "l.qzeros": at(2000, "int32", 2, 4),
        "l.scales": at(3000, "float16", 2, 32),
        "norm.weight": at(4000, "float16", 64),
    }
    found = summarise(graph(tensors))
    assert [q.family for q in found.quantized] == ["GPTQ"]
    assert found.parameters == 64 * 32 + 64


def test_the_section_of_a_name() -> None:
    sections = (Section("state_dict", "weights", 1, 4), Section("state_dict.ema", "ema", 1, 4))
    chosen = section_of(graph({}, section="state_dict", sections=sections))
    assert chosen("a.b") == "state_dict"
    every = section_of(graph({}, section="all", sections=sections))
    assert [every(n) for n in ("state_dict.w", "state_dict.ema.w", "state_dictionary.w", "x")] == [
        "state_dict",
        "state_dict.ema",
        "",
        "",
    ]
    assert section_of(graph({}))("a") == ""


def test_an_empty_checkpoint() -> None:
    found = summarise(graph({}))
    assert (found.tensors, found.nbytes, found.parameters, found.dtypes) == (0, 0, 0, {})
