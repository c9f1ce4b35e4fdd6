"""A pickle machine for looking, not for reading: it goes on where a loader would give up, and notes all it meets.

Loaders run a pickle while they parse it, so what stands before an error has been run already, and a scan must not
ask whether the stream makes sense. Nothing is refused here: an empty stack gives `UNKNOWN`, a missing memo entry
too, a bad string is taken as it is. Only an opcode that none knows, or the end of the bytes, stops the walk. What
no loader would accept is counted as an oddity, and a stream with oddities is never called clean.

The values on the stack are those of `ckptkit.format.pytorch.machine`. Nothing is hashed but names, nothing
recurses, and what would take more memory than the size of the stream allows becomes `UNKNOWN`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError
from typing import Any

from ckptkit.core.budgets import Budgets
from ckptkit.format.pytorch.nodes import Global, Object
from ckptkit.verbs.scan.brief import brief
from ckptkit.verbs.scan.lenient import (
    CONSTANTS,
    COUNTED,
    EXTENSIONS,
    FRESH,
    LINES,
    MARKED,
    UNKNOWN,
    Persistent,
    index,
)

_FREE = 250_000  # objects, and memo entries out of order, that a stream of any size may make
_INTEGER = 64  # bytes of an integer that is worth its value
_u16 = Struct("<H").unpack_from
_i32 = Struct("<i").unpack_from
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from
_f64 = Struct(">d").unpack_from


@dataclass(slots=True)
class Walk:
    """What one stream does.

    Attributes:
        names: every class and function named, in order, with the offset where it first is.
        calls: what is called, in order, with its offset: results of data constructors included.
        reached: how many names and calls a loader comes to before the first oddity.
        passed: how often each name is on the stack without being called right there: something else may call it.
        persistent: the ids asked for.
        value: what it leaves, `UNKNOWN` if it does not end.
        end: where it stopped.
        problem: why it stopped early, "" if it reached its STOP.
        oddities: what no loader would accept, first ones only.
        disputed: where loaders read different bytes, so that some run what is not seen here; "" if nowhere.
    """

    names: dict[Global, int] = field(default_factory=dict)
    calls: list[tuple[int, Object]] = field(default_factory=list)
    reached: tuple[int, int] = (0, 0)
    passed: dict[Global, int] = field(default_factory=dict)
    persistent: list[Any] = field(default_factory=list)
    value: Any = UNKNOWN
    end: int = 0
    problem: str = ""
    truncated: bool = False
    oddities: list[str] = field(default_factory=list)
    disputed: str = ""


# Told of the object that a BUILD completed and of the offset after it; returns where the stream goes on.
Inline = Callable[[Object, int], int]


def walk(data: bytes, start: int, budgets: Budgets, inline: Inline | None = None) -> Walk:
    """Walk the stream that begins at `start`. Never raises for anything that the bytes say."""
    walker = _Walker(data, start, budgets, inline)
    found = walker.walk
    try:
        walker.run(start)
    except (IndexError, StructError):
        found.problem, found.truncated = "the pickle ends before its STOP", True
        found.end = len(data)
    if not found.oddities:
        found.reached = len(found.names), len(found.calls)
    return found


class _Walker:
    def __init__(self, data: bytes, start: int, budgets: Budgets, inline: Inline | None) -> None:
        self.data = data
        self.budgets = budgets
        self.inline = inline
        self.walk = Walk()
        self.globals: dict[tuple[str, str], Global] = {}
        self.room = _FREE + (len(data) - start) // 8
        self.sparse = budgets.memo
        self.stack: list[Any] = []
        self.marks: list[int] = []

    def run(self, i: int) -> None:
        """The loop. Arguments that pass the end raise IndexError or struct.error."""
        data, found, stack = self.data, self.walk, self.stack
        size = len(data)
        memo: list[Any] = []  # entries 0, 1, 2, …, as pickle writes them
        sparse: dict[int, Any] = {}  # any other index
        push, pop = stack.append, self.pop
        edge = size + 1  # where the frame ends, or none is open
        for _ in range(self.budgets.opcodes):
            at = i
            if at >= edge:
                if at > edge:  # readers of files drop what of the opcode stands before the end of the frame
                    found.disputed = f"an opcode passes the end of its frame at byte {edge}"
                edge = size + 1
            op = data[i]
            i += 1
            if op == 0x4B:  # BININT1
                push(data[i])
                i += 1
            elif op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
                n = data[i] if op == 0x71 else _u32(data, i)[0]
                i += 1 if op == 0x71 else 4
                self.remember(memo, sparse, n)
            elif op == 0x68 or op == 0x6A:  # BINGET, LONG_BINGET
                n = data[i] if op == 0x68 else _u32(data, i)[0]
                i += 1 if op == 0x68 else 4
                push(self.again(self.recall(memo, sparse, n)))
            elif op == 0x94:  # MEMOIZE
                self.remember(memo, sparse, len(memo) + len(sparse))
            elif op == 0x85:  # TUPLE1
                if not stack or not self.spend():
                    pop()
                    push(UNKNOWN)
                else:
                    stack[-1] = (stack[-1],)
            elif op == 0x28:  # MARK
                self.marks.append(len(stack))
            elif op in COUNTED:
                width, make = COUNTED[op]
                end = i + width + int.from_bytes(data[i : i + width], "little")
                if i + width > size or end > size:
                    raise IndexError
                try:
                    push(make(data[i + width : end]))
                except UnicodeDecodeError:
                    self.odd("a string is not UTF-8")
                    push(data[i + width : end].decode("utf-8", "replace"))
                i = end
            elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                args = pop()
                self.call(at, pop(), args)
            elif op == 0x92:  # NEWOBJ_EX
                extra, args = pop(), pop()
                self.call(at, pop(), args, extra)
            elif op == 0x62:  # BUILD
                state = pop()
                target = stack[-1] if stack else UNKNOWN
                if type(target) is Object:
                    target.state = state
                    if self.inline is not None:
                        i = self.inline(target, i)
                elif type(target) is Global:
                    self.call(at, Global("", "setattr"), (target, state))
                    pop()
            elif op == 0x63 or op == 0x69:  # GLOBAL, INST
                module, i = self.line(i)
                name, i = self.line(i)
                if op == 0x63:
                    push(self.named(at, module, name))
                else:
                    args = tuple(self.marked())
                    self.call(at, self.named(at, module, name), args)
            elif op == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                if isinstance(module, str) and isinstance(name, str):
                    push(self.named(at, module, name))
                else:
                    self.odd("a class is named by something that is not text")
                    push(self.named(at, brief(module), brief(name)))
            elif op == 0x6F:  # OBJ
                items = self.marked()
                self.call(at, items[0] if items else UNKNOWN, tuple(items[1:]))
            elif op == 0x51:  # BINPERSID
                found.persistent.append(pop())
                push(UNKNOWN if not self.spend() else Persistent(found.persistent[-1]))
            elif op == 0x50:  # PERSID
                text, i = self.line(i)
                found.persistent.append(text)
                push(Persistent(text))
            elif op in MARKED:
                items = self.marked()
                push(MARKED[op](items) if self.spend() else UNKNOWN)
            elif op in FRESH:
                push(FRESH[op]() if self.spend() else UNKNOWN)
            elif op in CONSTANTS:
                push(CONSTANTS[op])
            elif op == 0x74:  # TUPLE
                items = self.marked()
                push(tuple(items) if self.spend() else UNKNOWN)
            elif op == 0x86 or op == 0x87:  # TUPLE2, TUPLE3
                items = [pop() for _ in range(op - 0x84)]
                push(tuple(reversed(items)) if self.spend() else UNKNOWN)
            elif op == 0x75 or op == 0x65 or op == 0x90:  # SETITEMS, APPENDS, ADDITEMS
                items = self.marked()
                self.extend(items, pairs=op == 0x75)
            elif op == 0x73:  # SETITEM
                value, key = pop(), pop()
                self.extend([key, value], pairs=True)
            elif op == 0x61:  # APPEND
                self.extend([pop()], pairs=False)
            elif op == 0x4D:  # BININT2
                push(_u16(data, i)[0])
                i += 2
            elif op == 0x4A:  # BININT
                push(_i32(data, i)[0])
                i += 4
            elif op == 0x47:  # BINFLOAT
                push(_f64(data, i)[0])
                i += 8
            elif op == 0x8A or op == 0x8B:  # LONG1, LONG4
                n = data[i] if op == 0x8A else _i32(data, i)[0]
                i += 1 if op == 0x8A else 4
                if n < 0 or i + n > size:
                    raise IndexError
                push(int.from_bytes(data[i : i + n], "little", signed=True) if n <= _INTEGER else UNKNOWN)
                i += n
            elif op in LINES:
                raw, i = self.raw(i)
                push(LINES[op](raw))
            elif op == 0x70:  # PUT
                text, i = self.line(i)
                self.remember(memo, sparse, index(text))
            elif op == 0x67:  # GET
                text, i = self.line(i)
                push(self.again(self.recall(memo, sparse, index(text))))
            elif op == 0x30:  # POP
                if self.marks and self.marks[-1] == len(stack):
                    self.marks.pop()
                else:
                    pop()
            elif op == 0x31:  # POP_MARK
                self.marked()
            elif op == 0x32:  # DUP
                push(self.again(stack[-1]) if stack else UNKNOWN)
            elif op == 0x80:  # PROTO
                if data[i] > 5:
                    self.odd(f"it claims protocol {data[i]}")
                i += 1
            elif op == 0x95:  # FRAME
                if edge <= size:
                    self.odd("a frame stands within a frame")
                i += 8
                edge = i + _u64(data, i - 8)[0]
                if edge > size:
                    self.odd("a frame passes the end")
            elif op in EXTENSIONS:
                n = EXTENSIONS[op]
                number = int.from_bytes(data[i : i + n], "little")
                i += n
                push(self.named(at, "copyreg", f"_extension_registry[{number}]"))
            elif op == 0x97:  # NEXT_BUFFER
                push(UNKNOWN)
            elif op == 0x98:  # READONLY_BUFFER
                continue
            elif op == 0x2E:  # STOP
                found.value, found.end = pop(), i
                return
            else:
                found.problem, found.end = f"byte {op:#04x} at {at} is not an opcode", at
                return
        found.problem, found.end = f"the pickle takes more than {self.budgets.opcodes} steps", i

    def pop(self) -> Any:
        stack, marks = self.stack, self.marks
        if not stack:
            self.odd("the stack is empty")
            return UNKNOWN
        value = stack.pop()
        while marks and marks[-1] > len(stack):
            marks.pop()  # a loader would stop at the mark; what is below it counts all the same
            self.odd("a mark is passed")
        return value

    def marked(self) -> list[Any]:
        """What lies above the topmost mark, taken off."""
        if not self.marks:
            self.odd("a mark is missing")
        base = self.marks.pop() if self.marks else 0
        items = self.stack[base:]
        del self.stack[base:]
        return items

    def spend(self) -> bool:
        """Whether one more object may be made."""
        self.room -= 1
        if self.room < 0:
            self.odd("more objects than its size allows")
            return False
        return True

    def odd(self, what: str) -> None:
        known = self.walk.oddities
        if not known:
            self.walk.reached = len(self.walk.names), len(self.walk.calls)
        if len(known) < 5 and what not in known:
            known.append(what)

    def remember(self, memo: list[Any], sparse: dict[int, Any], index: int) -> None:
        value = self.stack[-1] if self.stack else UNKNOWN
        if index < 0:
            self.odd("a memo index is no number")
        elif index < len(memo):
            memo[index] = value
        elif index == len(memo):
            memo.append(value)
        elif index in sparse or len(sparse) < self.sparse:
            sparse[index] = value
        else:
            self.odd("too many memo entries out of order")

    def recall(self, memo: list[Any], sparse: dict[int, Any], index: int) -> Any:
        if 0 <= index < len(memo):
            return memo[index]
        if index in sparse:
            return sparse[index]
        self.odd("a memo entry was never set")
        return UNKNOWN

    def raw(self, i: int) -> tuple[bytes, int]:
        end = self.data.find(b"\n", i)
        if end < 0:
            raise IndexError
        return self.data[i:end], end + 1

    def line(self, i: int) -> tuple[str, int]:
        raw, i = self.raw(i)
        return raw.decode("utf-8", "backslashreplace"), i

    def named(self, at: int, module: str, name: str) -> Global:
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
            self.walk.names[found] = at
            self.walk.passed[found] = 0
        self.walk.passed[found] += 1
        return found

    def again(self, value: Any) -> Any:
        """What is pushed once more."""
        if type(value) is Global:
            self.walk.passed[value] += 1
        return value

    def call(self, at: int, callee: Any, args: Any, extra: Any = None) -> None:
        """Note a call and push what stands for its result."""
        if type(callee) is Global:
            callee.called = True
            if callee in self.walk.passed:
                self.walk.passed[callee] -= 1
        if type(args) is not tuple:
            args = (args,)
        made = Object(callee, args)
        made.extra = extra
        self.walk.calls.append((at, made))
        self.stack.append(made if self.spend() else UNKNOWN)

    def extend(self, items: list[Any], *, pairs: bool) -> None:
        """Set or append items in what is on top of the stack."""
        target = self.stack[-1] if self.stack else UNKNOWN
        if pairs and len(items) % 2:
            self.odd("a key has no value")
            items.append(UNKNOWN)
        if isinstance(target, list):
            target += items
        elif type(target) is Object:
            kept = "pairs" if pairs else "items"
            known = getattr(target, kept)
            if known is None:
                setattr(target, kept, items)
            else:
                known += items
        elif type(target) is Global:
            self.odd("items are set in a class")
