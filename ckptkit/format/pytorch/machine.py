"""A pickle machine that names nothing and calls nothing: pickle bytes in, plain data out.

Layout: a pickle is a program of one-byte opcodes with arguments, run on a stack and a memo until STOP (`.`).
All opcodes of protocols 0 to 5 are known; what each leaves behind is data:

    None, bool, int, float, str, bytes, bytearray, tuple, list      themselves
    dict, set, frozenset                                            `Dict`, `Set`: lists, never hashed
    a class or function that the stream names (GLOBAL, INST, …)      `Global`
    a call or instance (REDUCE, NEWOBJ, OBJ, BUILD, …)               `Object`: what would be called, with what
    a persistent id                                                 whatever `persistent(id)` returns

Limits. Nothing recurses, so values may nest as deep as the stream likes; walkers must not recurse either. A
memo index is a key, never a size. Marks, integers, strings, opcodes and objects are bounded by the budgets. No
value of the stream is hashed or compared here except module and class names. EXT1/2/4 (a registry of this
process) and out-of-band buffers are refused: no checkpoint can depend on either.

Byte strings of Python 2 (STRING, BINSTRING, SHORT_BINSTRING) become str: as UTF-8 where they are that, which is
what torch does too, else as Latin-1 where torch gives up; `Text` keeps the bytes of those that are not ASCII.

Source: CPython 3.13 `Lib/pickletools.py`; behaviour compared with its `pickle` in the tests.
"""

import gc
from collections.abc import Callable, Iterator
from itertools import repeat
from struct import Struct, error as StructError
from typing import Any, NamedTuple

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.errors import CkptError

_LINE = 4_096  # bytes of one line of text: a module, a class, a number
_OBJECTS = 1_000_000  # containers and instances that any stream may make, however short


class Global:
    """A class or function that the stream names. One instance per name and stream; `called` if ever called."""

    __slots__ = ("called", "module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name
        self.called = False

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    __repr__ = __str__


class Object:
    """What a call or an instantiation would have made.

    Attributes:
        cls: what would be called, usually a `Global`.
        args: its positional arguments.
        state: what BUILD would set afterwards; None if it does not. Where it does so repeatedly, the last.
        items: what would be appended or added to it.
        pairs: what would be set in it: key, value, key, value, …
        extra: keyword arguments (`Dict`) of NEWOBJ_EX, or None.
    """

    __slots__ = ("args", "cls", "extra", "items", "pairs", "state")

    def __init__(self, cls: object, args: tuple[Any, ...]) -> None:
        self.cls = cls
        self.args = args
        self.state: Any = None
        self.items: list[Any] | None = None
        self.pairs: list[Any] | None = None
        self.extra: Any = None

    def __repr__(self) -> str:
        return f"<{self.cls if type(self.cls) is Global else type(self.cls).__name__} object>"


class Dict(list[Any]):
    """A dict as a flat list: key, value, key, value, … in stream order; keys may recur (the last one counts)."""

    __slots__ = ()

    def entries(self) -> Iterator[tuple[Any, Any]]:
        it = iter(self)
        return zip(it, it, strict=True)


class Set(list[Any]):
    """A set or frozenset as a list; items may recur."""

    __slots__ = ()


class Text(str):
    """A Python-2 byte string that is not ASCII, decoded; `raw` is what was stored."""

    __slots__ = ("raw",)
    raw: bytes


class Unpickled(NamedTuple):
    """What a stream held: its value, the names in it, in order of appearance, and where it ended."""

    value: Any
    globals_seen: tuple[Global, ...]
    end: int


def load(
    data: bytes,
    *,
    persistent: Callable[[Any], object] | None = None,
    budgets: Budgets = DEFAULT_BUDGETS,
    start: int = 0,
) -> Unpickled:
    """Run the pickle that begins at `start` up to its STOP.

    Args:
        persistent: turns a persistent id (str, or any value of the stream) into what stands for it; without
            it such ids are refused.

    Raises CkptError: `truncated` if the bytes end first, `pickle-invalid` for anything that pickle itself would
    not run, `pickle-unsupported` for EXT and out-of-band opcodes, `budget-exceeded`; and what `persistent` raises.
    """
    machine = _Machine(data, persistent, budgets)
    collecting = gc.isenabled()
    gc.disable()  # nothing made here can be freed before the end, and looking takes as long as parsing
    try:
        value, end = machine.run(start)
    finally:
        if collecting:
            gc.enable()
    return Unpickled(value, tuple(machine.globals.values()), end)


_u16 = Struct("<H").unpack_from
_i32 = Struct("<i").unpack_from
_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from
_f64 = Struct(">d").unpack_from


class _Machine:
    def __init__(self, data: bytes, persistent: Callable[[Any], object] | None, budgets: Budgets) -> None:
        self.data = data
        self.persistent = persistent or _no_persistent
        self.budgets = budgets
        self.globals: dict[tuple[str, str], Global] = {}

    def run(self, start: int) -> tuple[Any, int]:
        try:
            return self._run(start)
        except StructError:
            raise _truncated() from None
        except UnicodeError:
            raise _invalid("a string is not the text it claims to be") from None

    def _run(self, start: int) -> tuple[Any, int]:
        """The loop. Opcodes of torch.save come first, by how often they occur; reads past the end are
        IndexError (of `data`), `struct.error`, or caught by `_text`; an empty stack is IndexError too.
        """
        data = self.data
        size = len(data)
        persistent = self.persistent
        longest = self.budgets.string_bytes
        deepest = self.budgets.nesting
        room = _OBJECTS + (size - start) // 8  # objects that may still be made
        u16, i32, u32 = _u16, _i32, _u32
        stack: list[Any] = []
        push = stack.append
        pop = stack.pop
        outer: list[list[Any]] = []  # stacks below the marks
        memo: list[Any] = []  # indexes 0, 1, 2, …, as pickle writes them
        remember = memo.append
        sparse: dict[int, Any] = {}  # any other index
        i = start
        try:
            for _ in repeat(None, self.budgets.opcodes):
                op = data[i]
                i += 1
                if op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
                    if op == 0x71:
                        n = data[i]
                        i += 1
                    else:
                        n = u32(data, i)[0]
                        i += 4
                    if n == len(memo) and not sparse:
                        remember(stack[-1])
                    elif n < len(memo):
                        memo[n] = stack[-1]
                    else:
                        sparse[n] = stack[-1]
                elif op == 0x68 or op == 0x6A:  # BINGET, LONG_BINGET
                    if op == 0x68:
                        n = data[i]
                        i += 1
                    else:
                        n = u32(data, i)[0]
                        i += 4
                    if n < len(memo):
                        push(memo[n])
                    elif n in sparse:
                        push(sparse[n])
                    else:
                        raise _no_memo(n)
                elif op == 0x4B:  # BININT1
                    push(data[i])
                    i += 1
                elif op == 0x4D:  # BININT2
                    push(u16(data, i)[0])
                    i += 2
                elif op == 0x28:  # MARK
                    if len(outer) >= deepest:
                        raise _budget(f"nests marks deeper than {deepest}")
                    outer.append(stack)
                    stack = []
                    push = stack.append
                    pop = stack.pop
                elif op == 0x58:  # BINUNICODE
                    end = i + 4 + u32(data, i)[0]
                    if end > size or end - i > longest:
                        raise _too_long(end, size)
                    push(str(data[i + 4 : end], "utf-8", "surrogatepass"))
                    i = end
                elif op == 0x94:  # MEMOIZE
                    if sparse:
                        sparse[len(memo) + len(sparse)] = stack[-1]
                    else:
                        remember(stack[-1])
                elif op == 0x8C:  # SHORT_BINUNICODE
                    end = i + 1 + data[i]
                    if end > size:
                        raise _truncated()
                    push(str(data[i + 1 : end], "utf-8", "surrogatepass"))
                    i = end
                elif op == 0x74:  # TUPLE
                    items = stack
                    stack = outer.pop()
                    push = stack.append
                    pop = stack.pop
                    push(tuple(items))
                elif op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                    args = pop()
                    cls = pop()
                    if type(args) is not tuple:
                        raise _invalid("a call's arguments are not a tuple")
                    if type(cls) is Global:
                        cls.called = True
                    room -= 1
                    if room < 0:
                        raise _too_many()
                    push(Object(cls, args))
                elif op == 0x51:  # BINPERSID
                    push(persistent(pop()))
                elif op == 0x86:  # TUPLE2
                    second = pop()
                    stack[-1] = (stack[-1], second)
                elif op == 0x4A:  # BININT
                    push(i32(data, i)[0])
                    i += 4
                elif op == 0x29:  # EMPTY_TUPLE
                    push(())
                elif op == 0x89:  # NEWFALSE
                    push(False)
                elif op == 0x85:  # TUPLE1
                    room -= 1
                    if room < 0:
                        raise _too_many()
                    stack[-1] = (stack[-1],)
                elif op == 0x87:  # TUPLE3
                    third = pop()
                    second = pop()
                    stack[-1] = (stack[-1], second, third)
                elif op == 0x75 or op == 0x73:  # SETITEMS, SETITEM
                    if op == 0x75:
                        items = stack
                        stack = outer.pop()
                        push = stack.append
                        pop = stack.pop
                    else:
                        second = pop()
                        items = [pop(), second]
                    _set_items(stack[-1], items)
                elif op == 0x88:  # NEWTRUE
                    push(True)
                elif op == 0x8A:  # LONG1
                    n = data[i]
                    i += 1 + n
                    push(self.integer(i - n, n))
                elif op == 0x7D or op == 0x5D or op == 0x8F:  # EMPTY_DICT, EMPTY_LIST, EMPTY_SET
                    room -= 1
                    if room < 0:
                        raise _too_many()
                    push(Dict() if op == 0x7D else [] if op == 0x5D else Set())
                elif op == 0x61 or op == 0x65 or op == 0x90:  # APPEND, APPENDS, ADDITEMS
                    if op == 0x61:
                        items = [pop()]
                    else:
                        items = stack
                        stack = outer.pop()
                        push = stack.append
                        pop = stack.pop
                    _add_items(stack[-1], items, Set if op == 0x90 else list)
                elif op == 0x47:  # BINFLOAT
                    push(_f64(data, i)[0])
                    i += 8
                elif op == 0x4E:  # NONE
                    push(None)
                elif op == 0x62:  # BUILD
                    state = pop()
                    target = stack[-1]
                    if type(target) is not Object:
                        raise _invalid("a state is set on a plain value")
                    target.state = state
                elif op == 0x63:  # GLOBAL
                    module, i = self.line(i)
                    name, i = self.line(i)
                    push(self.named(module, name))
                elif op == 0x93:  # STACK_GLOBAL
                    name = pop()
                    push(self.named(pop(), name))
                elif op == 0x2E:  # STOP
                    return pop(), i
                elif op == 0x30:  # POP: an item, or else the mark
                    if stack:
                        pop()
                    else:
                        stack = outer.pop()
                        push = stack.append
                        pop = stack.pop
                elif op in _ON_MARK:
                    items = stack
                    stack = outer.pop()
                    push = stack.append
                    pop = stack.pop
                    room -= 1
                    if room < 0:
                        raise _too_many()
                    if op == 0x69:  # INST
                        module, i = self.line(i)
                        name, i = self.line(i)
                        cls = self.named(module, name)
                        cls.called = True
                        push(Object(cls, tuple(items)))
                    elif op != 0x31:  # POP_MARK
                        push(_ON_MARK[op](items))
                elif op == 0x92:  # NEWOBJ_EX
                    extra = pop()
                    args = pop()
                    cls = pop()
                    if type(args) is not tuple or type(extra) is not Dict:
                        raise _invalid("a call's arguments are not a tuple and a dict")
                    if type(cls) is Global:
                        cls.called = True
                    room -= 1
                    if room < 0:
                        raise _too_many()
                    made = Object(cls, args)
                    made.extra = extra
                    push(made)
                elif op == 0x70:  # PUT
                    text, i = self.line(i)
                    n = self.index(text)
                    if n < len(memo):
                        memo[n] = stack[-1]
                    else:
                        sparse[n] = stack[-1]
                elif op == 0x67:  # GET
                    text, i = self.line(i)
                    n = self.index(text)
                    if n < len(memo):
                        push(memo[n])
                    elif n in sparse:
                        push(sparse[n])
                    else:
                        raise _no_memo(n)
                elif op == 0x50:  # PERSID
                    text, i = self.line(i)
                    push(persistent(text))
                elif op == 0x32:  # DUP
                    push(stack[-1])
                elif op in _LITERALS:
                    value, i = _LITERALS[op](self, i)
                    push(value)
                elif op == 0x80:  # PROTO
                    if data[i] > 5:
                        raise _invalid(f"protocol {data[i]} is not one of pickle's, 0 to 5")
                    i += 1
                elif op == 0x95:  # FRAME: a hint for readers of pipes
                    i += 8
                    if i + _u64(data, i - 8)[0] > size:
                        raise _truncated()
                elif op in _REFUSED:
                    raise CkptError(
                        "pickle-unsupported", f"the pickle uses {_REFUSED[op]}, which no checkpoint needs"
                    )
                else:
                    raise _invalid(f"byte {op:#04x} at {i - 1} is not an opcode")
        except IndexError:
            if i >= size:
                raise _truncated() from None
            raise _invalid(f"the stack is empty at byte {i}") from None
        raise _budget(f"takes more than {self.budgets.opcodes} steps")

    def named(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise _invalid("a class is named by something that is not text")
        found = self.globals.get((module, name))
        if found is None:
            if len(module) > _LINE or len(name) > _LINE:
                raise _budget("names a class by more than 4096 characters")
            found = self.globals[module, name] = Global(module, name)
        return found

    def line(self, i: int) -> tuple[str, int]:
        end = self.data.find(b"\n", i, i + _LINE)
        if end < 0:
            if len(self.data) - i < _LINE:
                raise _truncated()
            raise _budget(f"holds a line of more than {_LINE} bytes")
        return str(self.data[i:end], "utf-8"), end + 1

    def index(self, text: str) -> int:
        if not text.isdecimal() or len(text) > 19:
            raise _invalid("a memo index is not a number")
        return int(text)

    def integer(self, i: int, n: int) -> int:
        """A little-endian two's complement number of `n` bytes."""
        if n > self.budgets.integer_bytes:
            raise _budget(f"holds an integer of {n} bytes")
        if i + n > len(self.data):
            raise _truncated()
        return int.from_bytes(self.data[i : i + n], "little", signed=True)

    def decimal(self, i: int) -> tuple[int | bool, int]:
        """INT or LONG: a line of digits; 00 and 01 are False and True."""
        text, i = self.line(i)
        digits = text.removesuffix("L")
        if len(digits) > self.budgets.integer_bytes * 5 // 2:
            raise _budget(f"holds an integer of {len(digits)} digits")
        if text in ("00", "01"):
            return text == "01", i
        if not digits.removeprefix("-").isdecimal() or not digits.isascii():
            raise _invalid("an integer is not made of digits")
        return int(digits), i

    def long4(self, i: int) -> tuple[int, int]:
        n = _i32(self.data, i)[0]
        if n < 0:
            raise _invalid("an integer has a negative length")
        return self.integer(i + 4, n), i + 4 + n

    def real(self, i: int) -> tuple[float, int]:
        text, i = self.line(i)
        try:
            return float(text), i
        except ValueError:
            raise _invalid("a number is not one") from None

    def counted(self, i: int, width: int) -> tuple[bytes, int]:
        """What follows a length of `width` bytes."""
        start = i + width
        if start > len(self.data):
            raise _truncated()
        n = int.from_bytes(self.data[i:start], "little")
        if start + n > len(self.data) or n > self.budgets.string_bytes:
            raise _too_long(start + n, len(self.data))
        return self.data[start : start + n], start + n

    def unicode(self, i: int, width: int) -> tuple[str, int]:
        raw, i = self.counted(i, width)
        return str(raw, "utf-8", "surrogatepass"), i

    def array(self, i: int) -> tuple[bytearray, int]:
        raw, i = self.counted(i, 8)
        return bytearray(raw), i

    def text(self, i: int, width: int) -> tuple[str, int]:
        """A Python-2 byte string after its length."""
        raw, i = self.counted(i, width)
        return decode(raw), i

    def quoted(self, i: int) -> tuple[str, int]:
        """A Python-2 byte string as a line of source text."""
        import codecs

        end = self.data.find(b"\n", i)
        if end < 0:
            raise _truncated()
        line = self.data[i:end].strip()
        if len(line) > self.budgets.string_bytes:
            raise _budget("holds a string that is too long")
        if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
            raise _invalid("a string has no quotes around it")
        try:
            raw = codecs.escape_decode(line[1:-1])[0]  # type: ignore[attr-defined]
        except ValueError:
            raise _invalid("a string holds a broken escape") from None
        return decode(raw), end + 1

    def escaped(self, i: int) -> tuple[str, int]:
        """UNICODE: a line in raw-unicode-escape."""
        end = self.data.find(b"\n", i)
        if end < 0:
            raise _truncated()
        if end - i > self.budgets.string_bytes:
            raise _budget("holds a string that is too long")
        return str(self.data[i:end], "raw-unicode-escape"), end + 1


def decode(raw: bytes) -> str:
    """A Python-2 byte string as str: ASCII, UTF-8 or else Latin-1; `raw_bytes` gives it back."""
    try:
        return str(raw, "ascii")
    except UnicodeDecodeError:
        pass
    try:
        text = Text(raw, "utf-8")
    except UnicodeDecodeError:
        text = Text(raw, "latin-1")
    text.raw = raw
    return text


def raw_bytes(value: object) -> bytes | None:
    """The bytes of bytes, bytearray or a Python-2 byte string (Latin-1 of other text); None if it has none."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Text):
        return value.raw
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return None


def _set_items(target: object, items: list[Any]) -> None:
    if len(items) % 2:
        raise _invalid("a key has no value")
    if type(target) is Dict:
        target += items
    elif type(target) is Object:
        if target.pairs is None:
            target.pairs = items
        else:
            target.pairs += items
    else:
        raise _invalid("keys are set in something that is no dict")


def _add_items(target: object, items: list[Any], plain: type[list[Any]]) -> None:
    if type(target) is plain:
        target += items
    elif type(target) is Object:
        if target.items is None:
            target.items = items
        else:
            target.items += items
    else:
        raise _invalid("items are added to something that does not take them")


def _dict(items: list[Any]) -> Dict:
    if len(items) % 2:
        raise _invalid("a key has no value")
    return Dict(items)


def _obj(items: list[Any]) -> Object:
    if not items:
        raise _invalid("an instance has no class")
    cls = items[0]
    if type(cls) is Global:
        cls.called = True
    return Object(cls, tuple(items[1:]))


_ON_MARK: dict[int, Callable[[list[Any]], object]] = {
    0x6C: list,
    0x64: _dict,
    0x6F: _obj,
    0x91: Set,  # FROZENSET
    0x31: list,  # POP_MARK
    0x69: list,  # INST
}

_LITERALS: dict[int, Callable[[_Machine, int], tuple[Any, int]]] = {
    0x49: _Machine.decimal,  # INT
    0x4C: _Machine.decimal,  # LONG
    0x46: _Machine.real,  # FLOAT
    0x53: _Machine.quoted,  # STRING
    0x56: _Machine.escaped,  # UNICODE
    0x54: lambda m, i: m.text(i, 4),  # BINSTRING
    0x55: lambda m, i: m.text(i, 1),  # SHORT_BINSTRING
    0x42: lambda m, i: m.counted(i, 4),  # BINBYTES
    0x43: lambda m, i: m.counted(i, 1),  # SHORT_BINBYTES
    0x8E: lambda m, i: m.counted(i, 8),  # BINBYTES8
    0x8D: lambda m, i: m.unicode(i, 8),  # BINUNICODE8
    0x96: _Machine.array,  # BYTEARRAY8
    0x8B: _Machine.long4,  # LONG4
}

_REFUSED = {
    0x82: "the extension registry (EXT1)",
    0x83: "the extension registry (EXT2)",
    0x84: "the extension registry (EXT4)",
    0x97: "out-of-band buffers (NEXT_BUFFER)",
    0x98: "out-of-band buffers (READONLY_BUFFER)",
}


def _no_persistent(_: object) -> object:
    raise _invalid("a persistent id stands where nothing can be referred to")


def _invalid(message: str) -> CkptError:
    return CkptError("pickle-invalid", f"the pickle cannot be run: {message}")


def _no_memo(index: int) -> CkptError:
    return _invalid(f"memo entry {index} was never set")


def _budget(message: str) -> CkptError:
    return CkptError("budget-exceeded", f"the pickle {message}")


def _too_many() -> CkptError:
    return _budget("makes more objects than its size allows")


def _truncated() -> CkptError:
    return CkptError("truncated", "the pickle ends before it says so")


def _too_long(end: int, size: int) -> CkptError:
    return _truncated() if end > size else _budget("holds a string that is too long")
