"""The contract language: what it means, what is refused and where, and that writing gives back what was read."""

from pathlib import Path
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptkit.core.errors import CkptError
from ckptkit.match.fit.compare import fit
from ckptkit.targets.contract import Contract
from ckptkit.targets.target import Dim, Spec, Stored
from ckptkit.verbs.check import check
from tests.graphs import graph

WHOLE = """\
# What the language model must be.
ckptkit-contract: 1
checkpoint: model.safetensors
ranges: {i: '0..2,5', j: '00..01'}
dimensions: {d: 8, vocab: any}
tensors:
  embed.weight: float32 [vocab, d]
  layers.{i}.{q,k}.weight: float32|bfloat16 [d, 3*d]
  parts.{j}: any []
  "{{literal}}": float32
  norm.weight: any [d, ?]
optional:
  layers.{i}.inv_freq: any
ties:
  - [embed.weight, norm.weight]
metadata:
  format: pt
  license: any
forbidden: ['*.lora_A.*']
unlisted: allow
policies:
  dtypes: [float32]
  max_size: 1.5GB
  values: finite
files:
  model.safetensors: {sha256: %s, size: 12}
""" % ("ab" * 32)


def test_what_a_contract_means() -> None:
    contract = Contract.parse(WHOLE)
    target = contract.target()
    assert target.tensors["layers.5.k.weight"] == Spec(("float32", "bfloat16"), (Dim("d"), Dim("d", 3)))
    assert target.tensors["parts.01"] == Spec((), ())
    assert target.tensors["{literal}"] == Spec(("float32",), None)
    assert target.tensors["norm.weight"].shape == (Dim("d"), None)
    assert target.tensors["layers.0.inv_freq"].optional
    assert "layers.3.k.weight" not in target.tensors
    assert target.dimensions == {"d": 8, "vocab": None}
    assert target.ties == (("embed.weight", "norm.weight"),)
    assert target.metadata == {"format": "pt", "license": None}
    assert target.forbidden == ("*.lora_A.*",)
    assert target.unlisted
    assert target.policies == (target.policies.__class__)(("float32",), 1_500_000_000, True)
    assert target.files == {"model.safetensors": Stored("ab" * 32, 12)}
    assert contract.comment == "# What the language model must be.\n"


def test_writing_gives_back_what_was_read() -> None:
    contract = Contract.parse(WHOLE)
    again = Contract.parse(contract.text())
    assert again == contract
    assert again.text() == contract.text()


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        ("tensors: {}", 1, "this is no contract", "ckptkit-contract: 1"),
        ("ckptkit-contract: 2\ntensors: {}", 1, "version 2", "version 1"),
        ("ckptkit-contract: 1", 1, "has tensors", None),
        ("ckptkit-contract: 1\ntensor: {}", 2, "'tensor'", "meant: tensors"),
        ("ckptkit-contract: 1\ntensors:\n  a: float23 [2]", 3, "'float23'", "float32"),
        ("ckptkit-contract: 1\ntensors:\n  a: float32 [vocb]", 3, "'vocb'", None),
        ("ckptkit-contract: 1\ndimensions: {vocab: 3}\ntensors:\n  a: float32 [vocb]", 4, "'vocb'", "vocab"),
        ("ckptkit-contract: 1\ndimensions: {vocab: three}\ntensors: {}", 2, "'three'", "any"),
        ("ckptkit-contract: 1\nranges: {i: 0-3}\ntensors: {}", 2, "'0-3'", "0..31"),
        ("ckptkit-contract: 1\nranges: {i: 3..0}\ntensors: {}", 2, "3..0", None),
        ("ckptkit-contract: 1\nranges: {i: 0..3}\ntensors:\n  a.{k}: any", 4, "{k}", "known: i"),
        ("ckptkit-contract: 1\ntensors:\n  a.{b: any", 3, "brace", "{{ }}"),
        ("ckptkit-contract: 1\ntensors:\n  a: any\n  '{a,b}': any", 4, "'a'", None),
        ("ckptkit-contract: 1\ntensors:\n  a: any\n  a: any", 4, "stands twice", None),
        (
            "ckptkit-contract: 1\ntensors:\n  weight: any\nties:\n  - [weight, wieght]",
            5,
            "'wieght'",
            "weight",
        ),
        ("ckptkit-contract: 1\ntensors:\n  a: any\nties:\n  - [a]", 5, "two names", None),
        ("ckptkit-contract: 1\ntensors: {}\npolicies: {max_size: large}", 3, "no size", "16GB"),
        ("ckptkit-contract: 1\ntensors: {}\npolicies: {value: finite}", 3, "'value'", "values"),
        ("ckptkit-contract: 1\ntensors: {}\nunlisted: maybe", 3, "'maybe'", "refuse, allow"),
        ("ckptkit-contract: 1\ntensors: {}\ndigest: 12", 3, "digest", None),
        ("ckptkit-contract: 1\ntensors: {}\nfiles: {a: {size: 3}}", 3, "sha256 and size", None),
        ("ckptkit-contract: 1\ntensors: [a]", 2, "mapping", None),
        ("ckptkit-contract: 1\ntensor:\n  a: any", 2, "there is no key 'tensor'", "tensors"),
        ("ckptkit-contract: 1\ntensors: &a\n  a: any\nx: *a", 4, "'x'", None),
        ("ckptkit-contract: 1\ntensors:\n\ta: any", 3, "YAML", "blanks"),
        ("ckptkit-contract: 1\ntensors: {a: [", 3, "YAML", None),
    ],
)
def test_a_mistake_is_located(text: str, line: int, said: str, hint: str | None) -> None:
    with pytest.raises(CkptError) as caught:
        Contract.parse(text, "m.ckpt.yaml")
    error = caught.value
    assert error.code == "contract-invalid"
    assert error.where == f"m.ckpt.yaml:{line}"
    assert said in error.message
    assert hint is None or hint in str(error.hint)


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999999}", "{0..999}" * 3, "a.{0..1000000}", "{a,b}" * 30],
    ids=lambda pattern: pattern[:20],
)
def test_a_pattern_that_explodes_is_refused(pattern: str) -> None:
    with pytest.raises(CkptError) as caught:
        Contract.parse(f"ckptkit-contract: 1\ntensors:\n  '{pattern}': any")
    assert caught.value.code in ("over-budget", "contract-invalid")


def test_layers_fold_and_sizes_get_names() -> None:
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (100, 32)}
    for layer in range(32):
        shapes |= {f"layers.{layer}.{part}_proj.weight": (32, 32) for part in "qkvo"}
        shapes |= {f"layers.{layer}.norm.weight": (32,)}
    contract = Contract.from_graph(graph(shapes, {"lm_head.weight": "embed_tokens.weight"}))
    assert contract.text().splitlines() == [
        "ckptkit-contract: 1",
        "ranges: {i: 0..31}",
        "dimensions: {vocab: 100, d: 32}",
        "tensors:",
        '  "{embed_tokens,lm_head}.weight": float32 [vocab, d]',
        "  layers.{i}.{q,k,v,o}_proj.weight: float32 [d, d]",
        "  layers.{i}.norm.weight: float32 [d]",
        "ties:",
        "  - [embed_tokens.weight, lm_head.weight]",
    ]


names = st.one_of(
    st.from_regex(r"\A[a-c]{1,2}(\.[0-9a-b]{1,2}){0,3}\Z"),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12),
    st.sampled_from(
        ["{i}", "a{0..3}", "a.{b,c}", "null", "- a", "a: b", "# x", "?", " a ", "\n", "a.0", "a.1", "a.2"]
    ),
)


@given(st.dictionaries(names, st.lists(st.integers(0, 40), max_size=3), max_size=12))
def test_every_checkpoint_fits_its_own_contract(shapes: dict[str, list[int]]) -> None:
    source = graph({name: tuple(shape) for name, shape in shapes.items()})
    contract = Contract.parse(Contract.from_graph(source).text())
    target = contract.target()
    assert set(target.tensors) == set(source)
    found = fit(source, target)
    assert (found.missing, found.unexpected, found.mismatched) == ((), (), ())
    assert found.fitting == len(source)


def test_a_dimension_of_any_size_must_agree() -> None:
    contract = Contract.parse(
        "ckptkit-contract: 1\ndimensions: {d: any}\ntensors:\n  a: any [d]\n  b: any [2*d]\n  c: any [d, d]"
    ).target()
    assert not fit(graph({"a": (3,), "b": (6,), "c": (3, 3)}), contract).mismatched
    (wrong,) = fit(graph({"a": (4,), "b": (6,), "c": (3, 3)}), contract).mismatched
    assert (wrong.name, wrong.expected, wrong.found) == ("a", "3", "4")


def test_saving_never_replaces_unasked(tmp_path: Path) -> None:
    contract = Contract.parse(WHOLE)
    path = tmp_path / "m.ckpt.yaml"
    contract.save(path)
    assert Contract.load(path).target().tensors == contract.target().tensors
    with pytest.raises(CkptError) as caught:
        contract.save(path)
    assert caught.value.code == "exists"
    contract.save(path, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == ["m.ckpt.yaml"]


@pytest.mark.parametrize("name", ["a" * 130, "x." * 700, "é" * 999, '"' * 1200, "{" * 300])
def test_long_names_are_written(name: str) -> None:
    source = graph({name: (2,), "b": (1,)})
    contract = Contract.from_graph(source)
    assert set(Contract.parse(contract.text()).target().tensors) == {name, "b"}


def test_many_names_that_fit_nothing_are_told_quickly() -> None:
    few, others = (graph({f"{lead}{i}.w": (3,) for i in range(5000)}) for lead in ("m.x", "q.y"))
    started = perf_counter()
    report = check(few, others)
    assert len(report.findings) == 10_000
    assert perf_counter() - started < 20
