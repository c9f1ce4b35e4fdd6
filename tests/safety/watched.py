"""Runs ckptkit commands over files and reports what Python's audit hooks saw that must not happen.

`python watched.py OUT ROOT…` reads `[[id, argv, path], …]` as JSON from stdin and prints for each
`[id, code, seconds, megabytes, traceback, events]`; `path` in place of `@` in argv, OUT in place of `@out`. Only files
below ROOTs may be read and only files below OUT written. Everything that the commands import by themselves is
imported before the hook is set, so any import after that comes from a file.
"""

import contextlib
import io
import json
import os
import pkgutil
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

# What may be imported while the hook is on; everything that commands import at need is imported before.
LAZY = ("encodings.", "numpy.")
READY = (
    "blake3", "numpy", "numpy.fft", "numpy.ma", "numpy.random", "ml_dtypes", "safetensors.numpy", "tabulate", "yaml",
    "bz2", "difflib", "json", "lzma", "marshal", "pickle", "shlex", "socket", "subprocess", "tomllib", "traceback",
    "unicodedata", "urllib.parse", "encodings.latin_1", "encodings.raw_unicode_escape", "encodings.unicode_escape",
    "encodings.utf_8_sig",
)  # fmt: skip
# What only these need, and which would cost all the others too much.
HEAVY = {"prove": ("onnxruntime",), "export": ("torch", "onnx", "onnxscript")}
FORBIDDEN = (
    "exec", "compile", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.",
    "socket.", "ctypes.", "marshal.loads", "pickle.find_class", "code.__new__", "pty.spawn", "os.startfile",
    "os.kill", "sys.settrace", "cpython.run", "os.putenv", "ftplib.", "urllib.", "webbrowser.", "smtplib.",
    "builtins.input",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "shutil.copytree", "os.utime", "os.setxattr",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """What was seen since the last look."""

    def __init__(self, out: str, roots: list[str]) -> None:
        self.out = out
        own = [sys.prefix, sys.base_prefix, os.path.dirname(sys.modules["ckptkit"].__file__ or "")]
        self.roots = tuple(os.path.realpath(root) for root in [*roots, out, *own])
        self.events: list[str] = []
        self.on = False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.on:
            return
        self.on = False
        try:
            if event == "open":
                self.opened(*args)
            elif event == "import":
                if not str(args[0]).startswith(LAZY):
                    self.events.append(f"import {args[0]}")
            elif event in CHANGES:
                if not all(
                    self.changeable(arg, args[-1]) for arg in args[:2] if isinstance(arg, str | os.PathLike)
                ):
                    self.events.append(f"{event} {args}")
            elif event.startswith(FORBIDDEN):
                if event in ("exec", "compile") and self.ours(args):
                    return
                self.events.append(f"{event} {str(args)[:200]}")
        finally:
            self.on = True

    def changeable(self, path: str | os.PathLike[str], folder: object) -> bool:
        """Whether a path lies below OUT. shutil.rmtree removes names in a folder that it has opened by its path."""
        if isinstance(folder, int) and folder >= 0 and os.path.basename(path) == os.fspath(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return self.inside(path, (self.out,))

    def opened(self, path: object, mode: object, flags: object) -> None:
        writes = isinstance(flags, int) and flags & WRITING
        if isinstance(path, int) or path == os.devnull:
            return
        if not self.inside(path, (self.out,) if writes else self.roots):
            self.events.append(f"open {path!r} {'for writing' if writes else 'for reading'}")

    def inside(self, path: object, roots: tuple[str, ...]) -> bool:
        real = os.path.realpath(os.fspath(path))  # type: ignore[call-overload]
        return any(os.path.commonpath((real, root)) == root for root in roots)

    def ours(self, args: tuple[object, ...]) -> bool:
        """Whether code is that of a module of Python, a dependency or ckptkit, being imported at need."""
        name = getattr(args[0], "co_filename", None) or (args[1] if len(args) > 1 else "")
        return isinstance(name, str) and (
            name.startswith("<frozen") or (os.path.isabs(name) and self.is_code(name))
        )

    def is_code(self, name: str) -> bool:
        return os.path.realpath(name).startswith(tuple(os.path.realpath(p) for p in sys.path if p))


def peak() -> int:
    """Peak memory of this process in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def reset() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def run(argv: list[str]) -> tuple[object, str]:
    """Exit code and what was printed. Code −1 for an exception that escaped."""
    from ckptkit.cli import main

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code: object = main(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            return -1, f"Traceback {error!r}"
    said = ""
    for stream in streams:
        stream.flush()
        said += stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    return code, said


def probe(source: str, out: str) -> tuple[object, str]:
    """Do what must be seen. The source is compiled before the watch is on."""
    with contextlib.suppress(Exception):
        PROBES[source](out)
    return 0, ""


PROBES: dict[str, Callable[[str], None]] = {}


def main() -> None:
    out, *roots = sys.argv[1:]
    jobs = json.load(sys.stdin)
    import ckptkit

    for module in pkgutil.walk_packages(ckptkit.__path__, "ckptkit."):
        if module.name not in ("ckptkit.testing", "ckptkit.__main__"):
            import_module(module.name)
    commands = {argv[0] for _, argv, _ in jobs}
    for name in (*READY, *(name for command in commands for name in HEAVY.get(command, ()))):
        import_module(name)
    for _, argv, _ in jobs:
        if argv[0] == "probe":
            name = f"probe_{len(PROBES)}"
            scope: dict[str, Any] = {}
            exec(f"def {name}(OUT): {argv[1]}", scope)
            PROBES[argv[1]] = scope[name]
    watch = Watch(os.path.realpath(out), roots)
    sys.addaudithook(watch)
    for name, argv, path in jobs:
        line = [path if arg == "@" else arg.replace("@out", out) for arg in argv]
        watch.events.clear()
        reset()
        started = time.process_time()
        watch.on = True
        code, said = probe(line[1], out) if line[0] == "probe" else run(line)
        watch.on = False
        seconds = time.process_time() - started
        wrong = (
            "Traceback" in said or "error[internal]" in said or any(c in said for c in "\x1b\x07\x9b\u202e")
        )
        print(
            json.dumps([name, code, seconds, peak() >> 20, said[-500:] if wrong else "", watch.events[:5]]),
            flush=True,
        )
        shutil.rmtree(out)
        os.mkdir(out)


if __name__ == "__main__":
    main()
