"""How much more than is stored may be produced: a 4-byte storage can claim terabytes through zero strides."""

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph

MAX_EXPAND = 16.0  # times the stored bytes; deflated weights of real checkpoints stay below 2
EXPAND_FLOOR = 1 << 30  # bytes that may come of anything


def refuse_expansion(
    nbytes: int, stored: int, where: str, hint: str | None = None, *, limit: float = MAX_EXPAND
) -> None:
    """Raise CkptError `expands` for `nbytes` to stream beyond 1 GiB and beyond `limit` times the bytes stored."""
    if nbytes > EXPAND_FLOOR and nbytes > limit * stored:
        raise CkptError("expands", f"{stored} stored bytes would become {nbytes}", where, hint)


def refuse_to_stream(graph: TensorGraph) -> None:
    """Raise CkptError `expands` unless the values of all tensors may be read one after another."""
    refuse_expansion(
        graph.nbytes, graph.origin.stored, graph.origin.path, "--exclude PATTERN leaves tensors out"
    )
