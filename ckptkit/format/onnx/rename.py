"""Renaming tensors in a model: the definition and every use of the name, as edits of the file."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ckptkit.core.errors import CkptError
from ckptkit.format.onnx.casts import Recast
from ckptkit.format.onnx.mentions import Body
from ckptkit.format.onnx.native import Native
from ckptkit.format.onnx.patch import Edit
from ckptkit.format.onnx.wire import encode_field

_SPARSE_PARTS = (".values", ".indices")


def rename_edits(
    native: Native, found: Iterable[Body], renamed: Mapping[str, str], recast: Recast
) -> list[Edit]:
    """The edits for tensors renamed since reading (`renamed`: current name → name in the file), and for their users.

    `recast` may give the users of a name another one than its definition gets. Raises CkptError `onnx-rename` for a
    tensor whose name is not its own (an attribute, a part of a path), `name-collision` when the new name means
    something else in the model.
    """
    found = list(found)
    local = _local_names(native, {old: new for new, old in renamed.items() if new != old})
    _refuse_collisions(found, local)
    edits = []
    for body in found:  # outer before inner
        outer = body.outer
        body.names = _visible(body, outer.names if outer else {}, local)
        body.uses = _visible(body, outer.uses if outer else {}, recast.uses)
        for mention in body.mentions:
            new = None if mention.defines else body.uses.get(mention.name)
            new = body.names.get(mention.name) if new is None else new
            if new is not None and mention.frame not in recast.gone:
                content = encode_field(mention.number, new.encode("utf-8", "replace"))
                edits.append(Edit(mention.frame, mention.span.at, mention.span.end, (content,)))
    return edits


def _visible(body: Body, outer: Mapping[str, str], local: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Name → new name as a body sees it: those around it that it does not define itself, and its own."""
    return {old: new for old, new in outer.items() if old not in body.defined} | dict(
        local.get(body.scope, {})
    )


def _local_names(native: Native, wanted: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Scope → name within it → new name within it. Raises CkptError `onnx-rename`."""
    local: dict[str, dict[str, str]] = {}
    for old, new in wanted.items():
        stored = native.tensors[old]
        scope = stored.scope
        if stored.tensor.kind not in ("initializer", "sparse-initializer", "constant"):
            raise CkptError(
                "onnx-rename",
                f"cannot be named {new!r}: this name is made of its node's and its attribute's",
                old,
                "exclude it from the renaming, or convert to .safetensors",
            )
        if not new.startswith(scope) or new == scope:
            raise CkptError(
                "onnx-rename",
                f"cannot be named {new!r}: inside a subgraph or function its name begins with {scope!r}",
                old,
                "exclude it from the renaming, or convert to .safetensors",
            )
        before, after = old[len(scope) :], new[len(scope) :]
        part = next((part for part in _SPARSE_PARTS if old.endswith(part)), "")
        if stored.tensor.note.startswith("sparse") and part:
            before, twin = before.removesuffix(part), old.removesuffix(part)
            if not after.endswith(part) or any(
                wanted.get(twin + other) != new.removesuffix(part) + other for other in _SPARSE_PARTS
            ):
                raise CkptError("onnx-rename", "the two parts of a sparse tensor have one name", old)
            after = after.removesuffix(part)
        local.setdefault(scope, {})[before] = after
    return local


def _refuse_collisions(bodies: Iterable[Body], local: Mapping[str, Mapping[str, str]]) -> None:
    """Raise CkptError `name-collision` where a new name would mean something else to a body that can see it."""
    given = {scope: set(names.values()) for scope, names in local.items()}
    for scope, names in local.items():
        if len(given[scope]) < len(names):
            twice = Counter(names.values()).most_common(1)[0][0]
            raise CkptError("name-collision", "two tensors would get this name", scope + twice)
    visible: dict[Body | None, set[str]] = {None: set()}
    for body in bodies:
        visible[body] = visible[body.outer] | given.get(body.scope, set())
        for name in {mention.name for mention in body.mentions}:
            passed = []
            around: Body | None = body
            while around is not None and name not in around.defined:
                passed.append(around)
                around = around.outer
            new = local.get(around.scope, {}).get(name) if around else None
            shadowed = any(new in given.get(inner.scope, ()) for inner in passed)
            if shadowed if new is not None else name in visible[body]:
                raise CkptError(
                    "name-collision",
                    "this name has another meaning in the ONNX graph",
                    body.scope + (name if new is None else new),
                )
