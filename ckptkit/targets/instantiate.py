"""A model made on torch's meta device, in a process of its own: what names, dtypes and shapes its weights have.

`manifest` asks, `main` answers. The process that makes the model ends with it: a factory that hangs is stopped, what
it prints reaches no output of ours, what it changes is gone. A configuration is data, so its process gets no folder to
read from, no network, and a bound on memory.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ckptkit.core.errors import CkptError

if TYPE_CHECKING:
    import subprocess

TIME_LIMIT = 60.0  # seconds
_MEMORY = 4 << 30  # bytes that making a model of a configuration may take beyond what the libraries do
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# The other end looks for modules exactly where this one does, and first of all never in its working folder.
_START = (
    "import json,sys;r=json.load(sys.stdin);sys.path[:]=r.pop('path');"
    "from ckptkit.targets.instantiate import main;main(r)"
)


class Weight(NamedTuple):
    """One entry of a state dict; those with equal `storage` are one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: int


class Manifest(NamedTuple):
    """What a module's state dict holds, and what its library does to names when it loads a checkpoint.

    Attributes:
        weights: parameters and persistent buffers, as files hold them.
        others: the same as the module holds them, where that differs.
        made: what the module is, in words.
        notes: what is worth telling.
        prefix: of its inner model, with which or without which names are accepted; "" for none.
        ignored: regular expressions of names that are passed over.
        optional: regular expressions of names that may be missing.
    """

    weights: tuple[Weight, ...]
    made: str
    others: tuple[Weight, ...] = ()
    notes: tuple[str, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def manifest(
    kind: Literal["module", "config"], what: Any, where: str, time_limit: float = TIME_LIMIT
) -> Manifest:
    """Make the model in another process and tell its weights.

    Args:
        kind: `module` for a factory of the user, `config` for a configuration of transformers.
        what: `package.module:factory`; or the configuration, an object of JSON.
        where: stands in messages.
        time_limit: seconds after which it is stopped.

    Raises CkptError `time-limit`, `module-invalid`, `config-unsupported`, `package-missing`, `over-budget`.
    """
    import subprocess
    import tempfile

    request = {"kind": kind, "what": what, "where": where, "path": sys.path}
    with ExitStack() as stack:
        mine = kind == "config"
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if mine else None,
                cwd=stack.enter_context(tempfile.TemporaryDirectory()) if mine else None,
                env={**os.environ, **_OFFLINE} if mine else None,
                start_new_session=True,
            )
        )
        stack.callback(_end, process)
        try:
            answer, _ = process.communicate(json.dumps(request).encode(), time_limit)
        except subprocess.TimeoutExpired:
            message = f"no model was made within {time_limit:g} seconds"
            raise CkptError("time-limit", message, where, "--time-limit SECONDS gives it longer") from None
    try:
        return _manifest(json.loads(answer), where)
    except ValueError:
        message = f"the process that made the model ended without an answer (code {process.returncode})"
        raise CkptError("module-invalid", message, where) from None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and whatever it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except OSError:  # it has ended already
        return


def _manifest(answer: Mapping[str, Any], where: str) -> Manifest:
    if "error" in answer:
        raise CkptError(*answer["error"])
    weights, others = (
        tuple(Weight(name, dtype, tuple(shape), at) for name, dtype, shape, at in answer[key])
        for key in ("weights", "others")
    )
    texts = {key: tuple(answer[key]) for key in ("notes", "ignored", "optional")}
    return Manifest(weights, answer["made"], others, prefix=answer["prefix"], **texts)


def main(request: Mapping[str, Any]) -> None:
    """The other end: writes the answer to what was stdout, which from here on is stderr."""
    with open(os.dup(1), "w", encoding="utf-8") as answers:
        try:
            os.dup2(2, 1)
        except OSError:  # our caller's stderr is closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        where = request["where"]
        try:
            answer = _CHILDREN[request["kind"]](request["what"], where)._asdict()
        except CkptError as error:
            answer = {"error": (error.code, error.message, error.where, error.hint)}
        except MemoryError:
            message = "the model needs too much memory, even without its weights"
            answer = {"error": ("over-budget", message, where, None)}
        except SystemExit as error:
            answer = {"error": ("module-invalid", f"the code ended its process ({error.code})", where, None)}
        json.dump(answer, answers)
    os._exit(0)  # threads that the code has left behind are not waited for


def _of_factory(spec: str, where: str) -> Manifest:
    from ckptkit.targets.factory import make_module, one_line

    module = make_module(spec, "meta")
    try:
        return Manifest(weights_of(module), f"{type(module).__name__} by {spec}")
    except Exception as error:  # a state_dict of the user's own
        raise CkptError("module-invalid", f"no state dict: {one_line(error)}", spec) from error


def _of_config(config: dict[str, Any], where: str) -> Manifest:
    from ckptkit.targets.pretrained import make

    _refuse_network()
    return make(config, where, _bound_memory)


_CHILDREN: dict[str, Callable[[Any, str], Manifest]] = {"module": _of_factory, "config": _of_config}


def weights_of(module: Any) -> tuple[Weight, ...]:
    """The tensors of a state dict."""
    import torch

    found = []
    for name, value in module.state_dict(keep_vars=True).items():  # tied parameters are one object
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            found.append(Weight(name, dtype, tuple(value.shape), id(value)))
    return tuple(found)


def _refuse_network() -> None:
    """No library gets to the network from here, whatever it is set to."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            raise OSError("there is no network in this process")

    sys.addaudithook(refuse)


def _bound_memory() -> None:
    """Where the platform lets us: lists as long as a number in a configuration end here, not in the swap."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return
