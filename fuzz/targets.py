"""What is fuzzed, and what must hold whatever the bytes: a value or a CkptError, the same twice, in bounded time.

Each target takes bytes and raises AssertionError, or anything but CkptError, where ckptkit is at fault.
"""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.core.files import File
from ckptkit.core.graph import TensorGraph
from ckptkit.core.options import ReadOptions
from ckptkit.format import onnx, pytorch, safetensors, shards
from ckptkit.format.pytorch.machine import load
from ckptkit.format.safetensors.header import parse
from ckptkit.rules.ruleset import Rules
from ckptkit.targets.contract import Contract
from ckptkit.verbs.convert import convert
from ckptkit.verbs.digest.listing import parse as parse_listing
from ckptkit.verbs.scan import scan
from ckptkit.verbs.scan.walker import walk

BUDGETS = Budgets(
    opcodes=200_000, string_bytes=1 << 20, entries=20_000, header_bytes=1 << 20, pickle_bytes=4 << 20,
    inflate_bytes=1 << 24, unpacked_bytes=1 << 22, index_bytes=1 << 20,
)  # fmt: skip
OPTIONS = ReadOptions(section="all", ambiguous="all", budgets=BUDGETS)
SECONDS = 2.0  # of one input; inputs are at most a few kilobytes

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
_FILE = str(_FOLDER / "x")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

Target = Callable[[bytes], None]


def _placed(data: bytes) -> str:
    """The bytes as a file, always the same one."""
    with open(_FILE, "wb") as file:
        file.write(data)
    return _FILE


def _refuse(error: CkptError) -> None:
    """A refusal that a user can be shown."""
    from ckptkit.core.codes import CODES

    assert error.code in CODES, error.code
    assert error.code not in ("internal", "plan-invalid", "write-check", "verify-failed", "source-length"), (
        error
    )
    assert error.message


def described(graph: TensorGraph) -> list[object]:
    """What a graph holds, but for the bytes."""
    tensors = [(name, t.dtype.name, t.shape, t.nbytes, t.kind, t.note) for name, t in graph.tensors.items()]
    return [
        tensors,
        graph.ties(),
        dict(graph.metadata),
        [leaf.path for leaf in graph.objects],
        graph.findings,
    ]


def _reads(read: Callable[[str, ReadOptions], TensorGraph]) -> Target:
    def target(data: bytes) -> None:
        path = _placed(data)
        started = time.perf_counter()
        try:
            graph = read(path, OPTIONS)
        except CkptError as error:
            _refuse(error)
            return
        finally:
            assert time.perf_counter() - started < SECONDS, "slow"
        assert described(read(path, OPTIONS)) == described(graph)
        small = {name: t for name, t in graph.items() if t.nbytes < 1 << 16}
        for tensor in small.values():
            try:
                assert len(tensor.tobytes()) == tensor.nbytes
            except CkptError as error:
                _refuse(error)

    return target


def pickle_machine(data: bytes) -> None:
    """The strict machine; whatever it sees the scan's machine sees too."""
    walked = walk(data, 0, BUDGETS)
    names = {(cls.module, cls.name) for cls in walked.names}
    try:
        found = load(data, persistent=lambda pid: None, budgets=BUDGETS)
    except CkptError as error:
        _refuse(error)
        return
    assert {(cls.module, cls.name) for cls in found.globals_seen} <= names
    assert walked.end == found.end
    assert not walked.problem


def safetensors_header(data: bytes) -> None:
    """The header alone, with as many bytes behind it as its first tensor says."""
    for available in (0, 8, 24, len(data)):
        try:
            header = parse(data, available, "x")
        except CkptError as error:
            _refuse(error)
        else:
            assert sum(entry.end - entry.begin for entry in header.entries) == available


def scanner(data: bytes) -> None:
    """A scan never fails, and says the same twice."""
    path = _placed(data)
    started = time.perf_counter()
    found = scan(path, budgets=BUDGETS)
    assert time.perf_counter() - started < SECONDS, "slow"
    assert scan(path, budgets=BUDGETS) == found


def converter(data: bytes) -> None:
    """What converts reads back equal."""
    path = _placed(data)
    for suffix in (".safetensors", ".pt"):
        target = _FOLDER / f"out{suffix}"
        target.unlink(missing_ok=True)
        try:
            convert(path, target, section="all", ties="copy", verify=False)
        except CkptError as error:
            _refuse(error)
        else:
            from ckptkit.format import read

            source, written = read(path, "all"), read(target, "all")
            assert set(written) == set(source)
            assert all(written[name].tobytes() == source[name].tobytes() for name in source)


def contract(data: bytes) -> None:
    """A contract that is understood writes back as one that says the same."""
    try:
        found = Contract.parse(data.decode("utf-8", "replace"))
        again = found.text()
        found.target()
    except CkptError as error:
        _refuse(error)
    else:
        assert Contract.parse(again).text() == again


def rules(data: bytes) -> None:
    """A rule file is understood or refused; turned around twice it is still one."""
    try:
        Rules.parse(data.decode("utf-8", "replace"))
    except CkptError as error:
        _refuse(error)


def listing(data: bytes) -> None:
    """Saved digests: what is read writes back as lines that read the same."""
    try:
        found = parse_listing(data, "x")
    except CkptError as error:
        _refuse(error)
        return
    for item in found.listed:
        assert isinstance(item.path, str)


def _index(path: str, options: ReadOptions) -> TensorGraph:
    File.at(path)
    return shards.read(path, options)


TARGETS: dict[str, Target] = {
    "pickle": pickle_machine,
    "header": safetensors_header,
    "safetensors": _reads(safetensors.read),
    "pytorch": _reads(pytorch.read),
    "onnx": _reads(onnx.read),
    "index": _reads(_index),
    "scan": scanner,
    "convert": converter,
    "contract": contract,
    "rules": rules,
    "listing": listing,
}
# Fixtures that seed a target, by pattern.
SEEDS: dict[str, tuple[str, ...]] = {
    "pickle": ("*/scan/*.pkl", "good/pickles/*.pkl"),
    "header": ("*/safetensors/*.safetensors",),
    "safetensors": ("*/safetensors/*.safetensors",),
    "pytorch": ("*/pytorch/*", "*/pickles/*", "*/scan/*.p*"),
    "onnx": ("*/onnx/*.onnx",),
    "index": ("*/folders/*/*.json",),
    "scan": ("*/scan/*", "*/pytorch/*", "*/onnx/*", "*/safetensors/*"),
    "convert": ("good/pickles/*", "good/pytorch/*", "good/safetensors/*", "good/onnx/*.onnx"),
    "contract": (),
    "rules": (),
    "listing": (),
}
_CONTRACT = """\
ckptkit-contract: 1
ranges: {i: 0..3}
dimensions: {d: 8}
metadata: {format: pt}
tensors:
  l.{i}.{a,b}.weight: float32 [d, 2]
  head: any [?]
  t: float16 [1]
"""
_TEXTS = {
    "contract": (_CONTRACT,),
    "listing": (
        f"{'0' * 64}  x.pt\n{'1' * 64} *a b\tw\n\\{'2' * 64}  c\\n\tw\\x1b\n",
        '{"schema": "ckptkit.digest/1", "path": "x", "digest": "00", "tensors": {"w": "11"}}',
        '[{"schema": "ckptkit.receipt/1", "target": "x", "digest": "0", "tensors": [{"name": "w", "digest": "1"}]}]',
    ),
}
_LARGEST = 16 << 10


def seeds(target: str) -> list[bytes]:
    """The fixtures that a target starts from; large ones would only be slow."""
    fixtures = Path(__file__).resolve().parents[1] / "fixtures"
    paths = sorted({p for pattern in SEEDS[target] for p in fixtures.glob(pattern) if p.is_file()})
    found = [path.read_bytes() for path in paths if path.stat().st_size <= _LARGEST]
    found += [text.encode() for text in _TEXTS.get(target, ())]
    if target == "rules":
        found = [
            path.read_bytes() for path in sorted((fixtures.parent / "ckptkit/rules/presets").glob("*.yaml"))
        ]
    if target == "header":
        found = [data[8 : 8 + int.from_bytes(data[:8], "little")] for data in found]
    if target == "pickle":  # and what lies in archives
        found += [
            d[d.find(b"\x80\x02") :][:4096]
            for d in seeds("pytorch")
            if d.startswith(b"PK") and b"\x80\x02" in d
        ]
    return found
