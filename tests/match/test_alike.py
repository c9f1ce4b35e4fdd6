"""Names that say the same: each is taken once, shapes agree, and names made to be slow are not."""

from time import process_time

from hypothesis import given
from hypothesis import strategies as st

from ckptkit.match.fit.alike import alike

SEGMENTS = st.lists(
    st.sampled_from(["a", "b", "layers", "blocks", "0", "1", "weight", ""]), min_size=1, max_size=5
)
NAMES = st.lists(SEGMENTS.map(".".join), max_size=12, unique=True)


def same(_: str, __: str) -> bool:
    return True


def never(_: str) -> bool:
    return False


def test_a_segment_that_is_another_in_all_names() -> None:
    lacking = [f"model.layers.{i}.{part}.weight" for i in range(200) for part in "qkvo"]
    extra = [name.replace("layers", "blocks") for name in lacking]
    assert alike(lacking, extra, same, never) == dict(zip(lacking, extra, strict=True))


def test_case_and_signs_alone() -> None:
    lacking = ["layer1.0.conv_1.weight", "fc.weight"]
    extra = ["LAYER1/0/CONV.1/WEIGHT:0", "fc-weight"]
    assert alike(lacking, extra, same, never) == dict(zip(lacking, extra, strict=True))
    assert alike(["a.b"], ["a/b", "A.B"], same, never) in ({"a.b": "a/b"}, {"a.b": "A.B"}, {})


def test_shapes_decide() -> None:
    found = alike(
        ["norm.weight"], ["nrom.weight", "nor.weight"], lambda _, there: there == "nor.weight", never
    )
    assert found == {"norm.weight": "nor.weight"}


def test_numbers_are_no_spelling() -> None:
    lacking, extra = [f"layers.{i}.w" for i in range(4)], [f"layers.{i + 4}.w" for i in range(4)]
    assert alike(lacking, extra, lambda *_: False, never) == {}


@given(NAMES, NAMES)
def test_each_name_is_taken_once(missing: list[str], unexpected: list[str]) -> None:
    found = alike(missing, unexpected, same, lambda name: "weight" in name)
    assert found.keys() <= set(missing)
    assert set(found.values()) <= set(unexpected)
    assert len(set(found.values())) == len(found)


def test_names_made_to_be_slow() -> None:
    pairs = [
        ([f"a{i}.w" for i in range(20_000)], [f"b{i}.w" for i in range(20_000)]),
        ([f"{'a.' * 3000}{i}.w" for i in range(100)], [f"{'b.' * 3000}{i}.w" for i in range(100)]),
        ([f"{'x' * 200_000}{i}" for i in range(20)], [f"{'y' * 200_000}{i}" for i in range(20)]),
    ]
    started = process_time()
    for lacking, extra in pairs:
        alike(lacking, extra, same, never)
    assert process_time() - started < 10
