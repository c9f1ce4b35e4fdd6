"""The book that a scan keeps: what was found so far, and what may still be spent."""

from collections.abc import Set as AbstractSet
from dataclasses import replace

from ckptkit.core.budgets import Budgets
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.nodes import Global, Object
from ckptkit.verbs.scan.brief import brief
from ckptkit.verbs.scan.report import Kind, Named, ScanFinding
from ckptkit.verbs.scan.verdicts import JUDGED_BY_CALL, Verdict, classify, harmless_call, is_torchscript
from ckptkit.verbs.scan.walker import Walk

_FINDINGS = 2_000  # told one by one; what comes after is counted
_NAMES = 20_000
_INDIRECT = 20  # calls of what calls returned that are told one by one
_STEPS = 2_000_000  # of pickles, that a file of any size may take
_ROOT = 50  # calls of what calls returned
_CALLS = 3  # of one name in one stream that are shown


class Ledger:
    """Findings and names of one scan, and its allowance of bytes to unpack and parts to open."""

    def __init__(self, budgets: Budgets, allowed: AbstractSet[str]) -> None:
        self.budgets = budgets
        self.allowed = allowed
        self.findings: list[ScanFinding] = []
        self.untold: dict[Kind, int] = {}
        self.names: dict[tuple[str, str], Named] = {}
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.files = 0
        self.parts = budgets.entries
        self.unpacked = budgets.unpacked_bytes
        self.steps = 0

    def add(
        self, kind: Kind, code: str, where: str, message: str, name: str = "", called: bool = False
    ) -> None:
        if len(self.findings) >= _FINDINGS:
            if not self.untold.get(kind):
                self.findings.append(
                    ScanFinding(
                        kind, "over-budget", where, "more findings of this kind follow, which are not told"
                    )
                )
            self.untold[kind] = self.untold.get(kind, 0) + 1
            return
        found = ScanFinding(kind, code, where, message, name, called)
        self.findings.append(found)

    def failed(self, error: CkptError, where: str) -> None:
        """A part that could not be read."""
        place = f"{where}: {error.where}" if error.where and error.where not in where else where
        self.add("unread", error.code, place, error.message)

    def begin(self, size: int) -> None:
        """Begin a file of so many bytes. What is packed in it may take more steps than that, but not at will."""
        self.steps = _STEPS + 8 * size

    def for_pickle(self) -> Budgets:
        """The budgets for one more pickle of the file."""
        return replace(self.budgets, opcodes=max(1, min(self.budgets.opcodes, self.steps)))

    def open(self, where: str) -> bool:
        """Whether one more part may be looked at."""
        self.files += 1
        self.parts -= 1
        if self.parts == 0:
            self.add(
                "unread",
                "over-budget",
                where,
                f"more than {self.budgets.entries} parts; the rest is not scanned",
            )
        return self.parts > 0

    def verdict(self, cls: Global, *, script: bool = False) -> Verdict:
        """What the name is; within a TorchScript archive its own classes are data."""
        key = (cls.module, cls.name)
        if str(cls) in self.allowed or (script and is_torchscript(cls.module)):
            return "data"
        if key not in self.verdicts:
            self.verdicts[key] = classify(*key)
        return self.verdicts[key]

    def know(self, cls: Global, verdict: Verdict) -> None:
        key = (cls.module, cls.name)
        known = self.names.get(key)
        if known is None and len(self.names) >= _NAMES:
            return
        streams = known.streams + 1 if known else 1
        called = cls.called or (known is not None and known.called)
        self.names[key] = Named(str(cls), verdict, called, streams)

    def stream(self, walk: Walk, where: str, base: int, *, script: bool = False) -> list[Object]:
        """Enter what a stream names and calls. Returns the calls that are no data, for a look at what they get."""
        calls: dict[Global, list[tuple[int, Object]]] = {}
        bad: list[Object] = []
        indirect = 0
        for at, call in walk.calls:
            if type(call.cls) is Global:
                verdict = self.verdict(call.cls, script=script)
                if verdict != "data" or not harmless_call(call):
                    bad.append(call)
                    calls.setdefault(call.cls, []).append((at, call))
            else:
                indirect += 1
                bad.append(call)
                if indirect <= _INDIRECT:
                    self.indirect(call, f"{where}, byte {base + at}")
        if indirect > _INDIRECT:
            text = f"would call what calls returned {indirect - _INDIRECT} times more"
            self.add("unknown", "runs-unknown", where, text)
        for cls, at in walk.names.items():
            verdict = self.verdict(cls, script=script)
            self.know(cls, verdict)
            if walk.passed.get(cls) and (cls.module, cls.name) in JUDGED_BY_CALL and verdict == "data":
                text = f"passes {cls} on, for something else to call"
                self.add("unknown", "runs-unknown", f"{where}, byte {base + at}", text, str(cls))
            found = calls.pop(cls, [])
            if found or verdict != "data":
                self.told(cls, verdict, found, where, base + (found[0][0] if found else at))
        for found in calls.values():  # what is called without being named: attributes set on a class
            at, call = found[0]
            text = f"would set attributes of {brief(call.args[0])}: {brief(call.args[1])}"
            self.add("unknown", "runs-unknown", f"{where}, byte {base + at}", text, brief(call.args[0]), True)
        return bad

    def told(
        self, cls: Global, verdict: Verdict, found: list[tuple[int, Object]], where: str, at: int
    ) -> None:
        kind: Kind = "code" if verdict == "code" else "unknown"
        shown = "; ".join(brief(call) for _, call in found[:_CALLS])
        if len(found) > _CALLS:
            shown += f"; and {len(found) - _CALLS} calls more"
        verb = ("run" if kind == "code" else "call") if found else "import"
        place = f"{where}, byte {at}"
        self.add(
            kind,
            "runs-code" if kind == "code" else "runs-unknown",
            place,
            f"would {verb} {shown or brief(cls)}",
            str(cls),
            bool(found),
        )

    def indirect(self, call: Object, where: str) -> None:
        """A call of what another call returned, or of something that is not named at all."""
        root: object = call.cls
        for _ in range(_ROOT):
            if type(root) is not Object:
                break
            root = root.cls
        named = type(root) is Global
        verdict = self.verdict(root) if type(root) is Global else "unknown"
        kind: Kind = "code" if verdict == "code" else "unknown"
        code = "runs-code" if kind == "code" else "runs-unknown"
        self.add(kind, code, where, f"would call {brief(call)}", str(root) if named else "", True)
