"""What becomes of every name, said in few rules."""

from hypothesis import given
from hypothesis import strategies as st

from ckptkit.rules.ruleset import Rules
from ckptkit.rules.spelling import spelled
from tests.graphs import graph

PARTS = st.sampled_from(["a", "b", "{i}", "0", "1", "module", "x y"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


@given(
    st.dictionaries(NAMES, st.sampled_from(["drop", "stay", "strip", "add", "swap"]), min_size=1, max_size=12)
)
def test_the_rules_do_what_was_said(told: dict[str, str]) -> None:
    moves: dict[str, str | None] = {}
    for name, what in told.items():
        new = {"drop": None, "stay": name, "strip": name.partition(".")[2] or name, "add": f"new.{name}"}
        moves[name] = new.get(what, f"{name}.w")
    if len({new for new in moves.values() if new is not None}) < sum(
        new is not None for new in moves.values()
    ):
        return  # two would get one name
    made = Rules.of(spelled(moves), keep_others=True).apply(graph(dict.fromkeys(moves, (1,))))
    assert {made.trace[new].sources: new for new in made.graph} == {
        (old,): new for old, new in moves.items() if new is not None
    }
    assert set(made.dropped) == {old for old, new in moves.items() if new is None}


def test_one_rule_for_all_below_a_prefix() -> None:
    moves: dict[str, str | None] = {f"module.layers.{i}.w": f"layers.{i}.w" for i in range(50)}
    assert len(spelled(moves)) == 1
    moves |= {"module.fc.w": None, "module.fc.b": None, "other": "other"}
    assert spelled(moves) == [
        {"from": "module.layers.{rest:**}", "to": "layers.{rest}"},
        {"drop": "module.fc.{rest:**}"},
    ]
    assert spelled({"a": "a", "b": "b"}) == []
    assert spelled({"a.w": "a.w", "a.b": None}, frozenset(["a.w"])) == [{"drop": "a.b"}]
