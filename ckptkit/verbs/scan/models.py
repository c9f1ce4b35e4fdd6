"""ONNX models and safetensors files: what in them leads outside, or to code.

An ONNX model is walked field by field, on every path that holds graphs, so that one broken message hides nothing.
"""

from ckptkit.core.errors import CkptError
from ckptkit.core.files import File, Reader, beside_file, hashed
from ckptkit.format.onnx.wire import LENGTH, VARINT, Wire
from ckptkit.verbs.scan.ledger import Ledger

# Message → field number → message, or what a text is called.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "=operator", 5: "attribute", 7: "=domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {1: "=function", 7: "node", 9: "opset", 10: "=own", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {8: "=tensor", 13: "pair"},
    "opset": {1: "=domain"},
    "pair": {1: "=key", 2: "=value"},
}
_DOMAINS = frozenset(
    {
        "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training",
        "com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc",
    }
)  # fmt: skip
# Operators of known domains that run a function of Python, or what a file of native code holds.
_FOREIGN = frozenset(
    {
        "ATen",
        "EPContext",
        "ExternalGraph",
        "PyOp",
        "PythonOp",
        "PythonOpGrad",
        "TensorRT",
        "Triton",
        "TritonOp",
    }
)
_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_TEXT = 4096


class Onnx:
    """One model file."""

    def __init__(self, reader: Reader, where: str, ledger: Ledger, *, crc: bool = False) -> None:
        self.crc = crc
        self.wire = Wire(reader, ledger.budgets)
        self.path = reader.file.path
        self.where = where
        self.ledger = ledger
        self.domains: dict[str, None] = {}
        self.operators: dict[tuple[str, str], None] = {}  # domain and name
        self.own: set[tuple[str, str]] = set()
        self.locations: set[str] = set()
        self.checksums: dict[tuple[str, str], None] = {}  # data file and the SHA-1 that the model states

    def scan(self) -> None:
        budgets = self.ledger.budgets
        todo = [("model", 0, self.wire.size, 0)]
        left = 20 * budgets.entries
        while todo:
            message, start, end, depth = todo.pop()
            if depth > 10 * budgets.nesting:
                self.ledger.add("unread", "over-budget", self.where, "graphs are nested without end")
                return
            table = _FIELDS[message]
            texts: dict[str, str] = {}
            pairs: list[dict[str, str]] = []
            try:
                for key, span in self.wire.fields(start, end):
                    left -= 1
                    if span.end > end:
                        raise CkptError(
                            "onnx-malformed", f"a field at byte {span.at} passes the end of its message"
                        )
                    what = table.get(key >> 3)
                    if what is None or key & 7 in (VARINT,):
                        continue
                    if key & 7 != LENGTH:
                        raise CkptError("onnx-malformed", f"a field at byte {span.at} is of another type")
                    if what.startswith("="):
                        raw = self.wire.read(span.start, min(span.end, span.start + _TEXT))
                        texts[what[1:]] = raw.decode("utf-8", "backslashreplace")
                    elif what == "pair":
                        pairs.append(self.pair(span.start, span.end))
                    else:
                        todo.append((what, span.start, span.end, depth + 1))
                    if left < 0:
                        raise CkptError("over-budget", "the model has too many parts")
            except CkptError as error:
                self.ledger.failed(error, self.where)
                if left < 0:
                    break
            if "domain" in texts:
                self.domains[texts["domain"]] = None
            if "operator" in texts:
                self.operators[texts.get("domain", ""), texts["operator"]] = None
            if "own" in texts:
                self.own.add((texts["own"], texts.get("function", "")))
            if pairs:
                self.external(pairs, texts.get("tensor", ""))
        for path, stated in self.checksums:
            self.check(path, stated)
        self.foreign()

    def foreign(self) -> None:
        """Operators that neither the standard nor a function of the model defines."""
        named = {domain for domain, _ in self.operators}
        alien = {domain for domain, operator in self.operators if (domain, operator) not in self.own}
        own = {domain for domain, _ in self.own}
        for domain in self.domains:
            if domain not in _DOMAINS and (domain in alien or (domain not in named and domain not in own)):
                text = f"operators of the domain {domain!r} need a library of native code to run"
                self.ledger.add("unknown", "custom-domain", self.where, text, domain)
        for domain, operator in self.operators:
            if domain in _DOMAINS and operator in _FOREIGN and (domain, operator) not in self.own:
                text = f"the operator {operator} runs what the model does not hold: Python or native code"
                self.ledger.add("unknown", "custom-domain", self.where, text, operator)

    def pair(self, start: int, end: int) -> dict[str, str]:
        found = {}
        for key, span in self.wire.fields(start, end):
            what = _FIELDS["pair"].get(key >> 3)
            if what and key & 7 == LENGTH and span.end <= end:
                raw = self.wire.read(span.start, min(span.end, span.start + _TEXT))
                found[what[1:]] = raw.decode("utf-8", "backslashreplace")
        return found

    def external(self, pairs: list[dict[str, str]], name: str) -> None:
        """Check where a tensor's data lie: readers that set whatever key they meet are known."""
        place = f"{self.where}: {name}"
        entry = {pair.get("key", ""): pair.get("value", "") for pair in pairs}
        if self.crc and "checksum" in entry and "location" in entry:
            self.checksums[entry["location"], entry["checksum"]] = None
        for pair in pairs:
            key, value = pair.get("key", ""), pair.get("value", "")
            if key not in _KEYS:
                text = f"external data with the key {key[:80]!r}, which some readers set as an attribute"
                self.ledger.add("trick", "onnx-external", place, text)
            elif key in ("offset", "length") and not (
                value.isascii() and value.isdigit() and len(value) < 20
            ):
                self.ledger.add(
                    "trick", "onnx-external", place, f"external data with the {key} {value[:40]!r}"
                )
            elif key == "location" and value not in self.locations:
                self.locations.add(value)
                if value.startswith("#") or "_ORT_MEM_ADDR_" in value:
                    text = f"external data in the memory of a process: {value[:80]!r}"
                    self.ledger.add("trick", "onnx-external", place, text)
                    continue
                try:
                    beside_file(self.path, value)
                except CkptError as error:
                    self.ledger.add("trick", error.code, place, error.message)

    def check(self, location: str, stated: str) -> None:
        """Compare a data file with the SHA-1 that the model states. A file that is not there says nothing."""
        try:
            digest = hashed(File.at(beside_file(self.path, location)), "sha1")
        except CkptError as error:
            self.ledger.failed(error, self.where)
            return
        if digest != stated.lower():
            text = f"the data file {location!r} is not the one that the model was made with"
            self.ledger.add("trick", "checksum-mismatch", self.where, text)


def scan_safetensors(reader: Reader, where: str, ledger: Ledger) -> None:
    """A file of numbers and text, if its header holds; nothing of it is ever run."""
    from ckptkit.format.safetensors.header import read_header

    try:
        read_header(reader, ledger.budgets)
    except CkptError as error:
        ledger.add("unread", error.code, where, error.message)
