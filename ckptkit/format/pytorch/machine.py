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

from collections.abc import Callable
from itertools import repeat
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from ckptkit.core.budgets import DEFAULT_BUDGETS, Budgets
from ckptkit.core.collector import paused
from ckptkit.core.errors import CkptError
from ckptkit.format.pytorch.arguments import (
    LINE,
    LITERALS,
    Arguments,
    budget,
    invalid,
    no_memo,
    too_long,
    too_many,
    truncated,
)
from ckptkit.format.pytorch.filling import ON_MARK, add_items, set_items
from ckptkit.format.pytorch.nodes import Dict, Global, Object, Set

_OBJECTS = 250_000  # containers and instances that any stream may make, however short


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
    not run, `pickle-unsupported` for EXT and out-of-band opcodes, `over-budget`; and what `persistent` raises.
    """
    machine = _Machine(data, persistent, budgets)
    with paused():
        value, end = machine.run(start)
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
            raise truncated() from None
        except UnicodeError:
            raise invalid("a string is not the text it claims to be") from None

    def _run(self, start: int) -> tuple[Any, int]:
        """The loop: first the opcodes that tensors are made of, then the others.

        Reading past the end is IndexError (of `data`) or `struct.error`, an empty stack is IndexError too.
        """
        data = self.data
        size = len(data)
        arguments = Arguments(data, self.budgets)
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
        dense = 0  # length of `memo`, or -1 once it no longer grows
        sparse: dict[int, Any] = {}  # any other index
        edge = size + 1  # where the frame ends, or none is open
        i = start
        try:
            for _ in repeat(None, self.budgets.opcodes):
                if i >= edge:
                    if i > edge:
                        raise invalid("an opcode passes the end of its frame")
                    edge = size + 1
                op = data[i]
                i += 1
                if op < 0x68:
                    if op == 0x4B:  # BININT1
                        push(data[i])
                        i += 1
                        continue
                    if op == 0x28:  # MARK
                        if len(outer) >= deepest:
                            raise budget(f"nests marks deeper than {deepest}")
                        outer.append(stack)
                        stack = []
                        push = stack.append
                        pop = stack.pop
                        continue
                    if op == 0x58:  # BINUNICODE
                        end = i + 4 + u32(data, i)[0]
                        if end > size or end - i > longest:
                            raise too_long(end, size)
                        push(str(data[i + 4 : end], "utf-8", "surrogatepass"))
                        i = end
                        continue
                    if op == 0x4D:  # BININT2
                        push(u16(data, i)[0])
                        i += 2
                        continue
                    if op == 0x51:  # BINPERSID
                        push(persistent(pop()))
                        continue
                    if op == 0x29:  # EMPTY_TUPLE
                        push(())
                        continue
                    if op == 0x4A:  # BININT
                        push(i32(data, i)[0])
                        i += 4
                        continue
                    if op == 0x61:  # APPEND
                        second = pop()
                        if type(stack[-1]) is list:
                            stack[-1].append(second)
                        else:
                            add_items(stack[-1], [second], list)
                        continue
                elif op < 0x75:
                    if op == 0x72 or op == 0x71:  # LONG_BINPUT, BINPUT
                        if op == 0x72:
                            n = u32(data, i)[0]
                            i += 4
                        else:
                            n = data[i]
                            i += 1
                        if n == dense:
                            remember(stack[-1])
                            dense += 1
                        elif n < len(memo):
                            memo[n] = stack[-1]
                        else:
                            sparse[n] = stack[-1]
                            dense = -1
                            if len(sparse) > self.budgets.memo:
                                raise budget(f"numbers more than {self.budgets.memo} memo entries at will")
                        continue
                    if op == 0x68 or op == 0x6A:  # BINGET, LONG_BINGET
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
                            raise no_memo(n)
                        continue
                    if op == 0x74:  # TUPLE
                        items = stack
                        stack = outer.pop()
                        push = stack.append
                        pop = stack.pop
                        push(tuple(items))
                        continue
                elif op == 0x86:  # TUPLE2
                    second = pop()
                    stack[-1] = (stack[-1], second)
                    continue
                elif op == 0x94:  # MEMOIZE
                    if dense >= 0:
                        remember(stack[-1])
                        dense += 1
                    else:
                        sparse[len(memo) + len(sparse)] = stack[-1]
                    continue
                elif op == 0x89:  # NEWFALSE
                    push(False)
                    continue
                elif op == 0x8C:  # SHORT_BINUNICODE
                    end = i + 1 + data[i]
                    if end > size:
                        raise truncated()
                    push(str(data[i + 1 : end], "utf-8", "surrogatepass"))
                    i = end
                    continue
                if op == 0x52 or op == 0x81:  # REDUCE, NEWOBJ
                    args = pop()
                    cls = pop()
                    if type(args) is not tuple:
                        raise invalid("a call's arguments are not a tuple")
                    if type(cls) is Global:
                        cls.called = True
                    room -= 1
                    if room < 0:
                        raise too_many()
                    push(Object(cls, args))
                elif op == 0x85:  # TUPLE1
                    room -= 1
                    if room < 0:
                        raise too_many()
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
                    set_items(stack[-1], items)
                elif op == 0x88:  # NEWTRUE
                    push(True)
                elif op == 0x8A:  # LONG1
                    n = data[i]
                    i += 1 + n
                    push(arguments.integer(i - n, n))
                elif op == 0x7D or op == 0x5D or op == 0x8F:  # EMPTY_DICT, EMPTY_LIST, EMPTY_SET
                    room -= 1
                    if room < 0:
                        raise too_many()
                    push(Dict() if op == 0x7D else [] if op == 0x5D else Set())
                elif op == 0x65 or op == 0x90:  # APPENDS, ADDITEMS
                    items = stack
                    stack = outer.pop()
                    push = stack.append
                    pop = stack.pop
                    add_items(stack[-1], items, Set if op == 0x90 else list)
                elif op == 0x47:  # BINFLOAT
                    push(_f64(data, i)[0])
                    i += 8
                elif op == 0x4E:  # NONE
                    push(None)
                elif op == 0x62:  # BUILD
                    state = pop()
                    target = stack[-1]
                    if type(target) is not Object:
                        raise invalid("a state is set on a plain value")
                    target.state = state
                elif op == 0x63:  # GLOBAL
                    module, i = arguments.line(i)
                    name, i = arguments.line(i)
                    push(self.named(module, name))
                elif op == 0x93:  # STACK_GLOBAL
                    name = pop()
                    push(self.named(pop(), name))
                elif op == 0x2E:  # STOP
                    if not stack:
                        raise invalid("nothing is left at its end")
                    return pop(), i
                elif op == 0x30:  # POP: an item, or else the mark
                    if stack:
                        pop()
                    else:
                        stack = outer.pop()
                        push = stack.append
                        pop = stack.pop
                elif op in ON_MARK:
                    items = stack
                    stack = outer.pop()
                    push = stack.append
                    pop = stack.pop
                    room -= 1
                    if room < 0:
                        raise too_many()
                    if op == 0x69:  # INST
                        module, i = arguments.line(i)
                        name, i = arguments.line(i)
                        cls = self.named(module, name)
                        cls.called = True
                        push(Object(cls, tuple(items)))
                    elif op != 0x31:  # POP_MARK
                        push(ON_MARK[op](items))
                elif op == 0x92:  # NEWOBJ_EX
                    extra = pop()
                    args = pop()
                    cls = pop()
                    if type(args) is not tuple or type(extra) is not Dict:
                        raise invalid("a call's arguments are not a tuple and a dict")
                    if type(cls) is Global:
                        cls.called = True
                    room -= 1
                    if room < 0:
                        raise too_many()
                    made = Object(cls, args)
                    made.extra = extra
                    push(made)
                elif op == 0x70:  # PUT
                    text, i = arguments.line(i)
                    n = arguments.index(text)
                    if n < len(memo):
                        memo[n] = stack[-1]
                    else:
                        sparse[n] = stack[-1]
                        dense = -1
                        if len(sparse) > self.budgets.memo:
                            raise budget(f"numbers more than {self.budgets.memo} memo entries at will")
                elif op == 0x67:  # GET
                    text, i = arguments.line(i)
                    n = arguments.index(text)
                    if n < len(memo):
                        push(memo[n])
                    elif n in sparse:
                        push(sparse[n])
                    else:
                        raise no_memo(n)
                elif op == 0x50:  # PERSID
                    text, i = arguments.line(i)
                    push(persistent(text))
                elif op == 0x32:  # DUP: no pickler writes it, so it counts as an object
                    room -= 1
                    if room < 0:
                        raise too_many()
                    push(stack[-1])
                elif op in LITERALS:
                    value, i = LITERALS[op](arguments, i)
                    push(value)
                elif op == 0x80:  # PROTO
                    if data[i] > 5:
                        raise invalid(f"protocol {data[i]} is not one of pickle's, 0 to 5")
                    i += 1
                elif (
                    op == 0x95
                ):  # FRAME: readers of files drop what of an opcode stands before the end of a frame
                    i += 8
                    if edge <= size:
                        raise invalid("a frame stands within a frame")
                    edge = i + _u64(data, i - 8)[0]
                    if edge > size:
                        raise truncated()
                elif op in _REFUSED:
                    raise CkptError(
                        "pickle-unsupported", f"the pickle uses {_REFUSED[op]}, which no checkpoint needs"
                    )
                else:
                    raise invalid(f"byte {op:#04x} at {i - 1} is not an opcode")
        except IndexError:
            if i >= size:
                raise truncated() from None
            raise invalid(f"the stack is empty at byte {i}") from None
        raise budget(f"takes more than {self.budgets.opcodes} steps")

    def named(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise invalid("a class is named by something that is not text")
        found = self.globals.get((module, name))
        if found is None:
            if len(module) > LINE or len(name) > LINE:
                raise budget("names a class by more than 4096 characters")
            found = self.globals[module, name] = Global(module, name)
        return found


_REFUSED = {
    0x82: "the extension registry (EXT1)",
    0x83: "the extension registry (EXT2)",
    0x84: "the extension registry (EXT4)",
    0x97: "out-of-band buffers (NEXT_BUFFER)",
    0x98: "out-of-band buffers (READONLY_BUFFER)",
}


def _no_persistent(_: object) -> object:
    raise invalid("a persistent id stands where nothing can be referred to")
