"""A pickle reader that builds data and nothing else.

It interprets the instructions itself instead of handing them to Python's pickle module, so nothing in a file is ever
imported, looked up or called: a global becomes an inert `Global` if it is in the caller's table of (module, name)
pairs, an inert `Foreign` or an error if not; what REDUCE, NEWOBJ and BUILD mean for it is decided by the caller's
`Rules`. Every length is checked against the bytes that are really there, and each instruction makes at most one small
object.
Format: PEP 307, PEP 3154 and the comments of CPython's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

from edm_fast.checkpoint._foreign import Foreign
from edm_fast.checkpoint._records import Budget, CheckpointError, Global

MAX_INT_BYTES = 64  # integers in checkpoints are counts, seeds and one 80-bit magic number
MAX_TEXT_NUMBER = 40
KEY_TYPES = (
    str,
    int,
    float,
    type(None),
    Global,
    Foreign,
)  # not tuples: hashing a tuple of shared tuples takes exponential time


class Rules(Protocol):
    """What the objects of one kind of file mean."""

    def find_global(self, module: str, name: str) -> Global | Foreign: ...
    def reduce(self, function: Any, args: tuple[Any, ...]) -> Any: ...
    def new_object(self, cls: Any, args: tuple[Any, ...]) -> Any: ...
    def build(self, target: Any, state: Any) -> None: ...
    def persistent_id(self, pid: Any) -> Any: ...


class Reader:
    """One pickle in `data` from `position` on; `load()` returns its value and leaves `position` behind it."""

    def __init__(self, data: memoryview, rules: Rules, budget: Budget, position: int = 0):
        self.data = data
        self.rules = rules
        self.budget = budget
        self.position = position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        data, steps, size = self.data, STEPS, len(self.data)
        while True:
            if self.position >= size:
                raise CheckpointError("the file is cut short")
            opcode = data[self.position]
            self.position += 1
            self.budget.spend_instructions(1)
            if opcode == STOP:
                value = self.pop()
                if self.stack or self.marks:
                    raise CheckpointError("damaged pickle: values left over at its end")
                return value
            step = steps.get(opcode)
            if step is None:
                raise CheckpointError(f"damaged pickle: instruction 0x{opcode:02x} does not belong in a checkpoint")
            step(self)

    # bytes

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise CheckpointError("the file is cut short")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self, limit: int) -> bytes:
        """Bytes up to the next newline, at most `limit`."""
        piece, length, window = b"", -1, 64
        while length < 0:
            if len(piece) > limit or window > 2 * max(len(self.data), 64):
                raise CheckpointError("damaged pickle: a text line without end")
            piece = bytes(self.data[self.position : self.position + min(window, limit + 1)])
            length = piece.find(b"\n")
            window *= 2
        self.position += length + 1
        return piece[:length]

    # stack

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("damaged pickle: too few values")
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("damaged pickle: too few values")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError("damaged pickle: no mark")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError("damaged pickle: a reference to nothing")
        self.stack.append(self.memo[index])

    # containers

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Foreign) and target.args is not None:
            target.items.extend(items)
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise CheckpointError("damaged pickle: items for something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, KEY_TYPES):
                raise CheckpointError(f"a dict key of type {type(key).__name__}; expected text or a number")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Foreign) and target.args is not None:
            target.items.extend(items)
            return
        if not isinstance(target, list):
            raise CheckpointError("damaged pickle: items for something that is not a list")
        target.extend(items)

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, set):
            raise CheckpointError("damaged pickle: items for something that is not a set")
        target.update(plain_keys(items))

    # objects

    def reduce(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(args, tuple):
            raise CheckpointError("damaged pickle: a call without arguments")
        self.stack.append(self.rules.reduce(function, args))

    def new_object(self) -> None:
        args, cls = self.pop(), self.pop()
        if not isinstance(args, tuple):
            raise CheckpointError("damaged pickle: an object without arguments")
        self.stack.append(self.rules.new_object(cls, args))

    def new_object_with_keywords(self) -> None:
        kwargs, args, cls = self.pop(), self.pop(), self.pop()
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise CheckpointError("damaged pickle: an object without arguments")
        self.stack.append(self.rules.new_object(cls, (*args, kwargs) if kwargs else args))

    def build(self) -> None:
        state = self.pop()
        self.rules.build(self.top(), state)

    def text_global(self) -> None:
        module = self.line(256).decode("utf-8")
        self.stack.append(self.rules.find_global(module, self.line(256).decode("utf-8")))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise CheckpointError("damaged pickle: a global without a name")
        self.stack.append(self.rules.find_global(module, name))

    # scalars

    def protocol(self) -> None:
        if self.number("<B") > 5:
            raise CheckpointError("a pickle of an unknown protocol; expected 0 to 5")

    def frame(self) -> None:
        if self.number("<Q") > len(self.data) - self.position:
            raise CheckpointError("the file is cut short")

    def long(self, count: int) -> None:
        if not 0 <= count <= MAX_INT_BYTES:
            raise CheckpointError(f"an integer of {count} bytes; expected at most {MAX_INT_BYTES}")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def text_int(self) -> None:
        text = self.line(MAX_TEXT_NUMBER)
        self.stack.append(text == b"01" if text in (b"00", b"01") else int(text.rstrip(b"L")))

    def unicode(self, count: int) -> None:
        self.stack.append(str(self.take(count), "utf-8", "surrogatepass"))

    def text_unicode(self) -> None:
        self.stack.append(self.line(len(self.data) - self.position).decode("raw-unicode-escape"))


def plain_keys(items: list[Any]) -> list[Any]:
    for item in items:
        if not isinstance(item, KEY_TYPES):
            raise CheckpointError(f"a set item of type {type(item).__name__}; expected text or a number")
    return items


def _push(value: Any) -> Callable[[Reader], None]:
    return lambda r: r.stack.append(value)


def _push_number(layout: str) -> Callable[[Reader], None]:
    return lambda r: r.stack.append(r.number(layout))


def _push_new(kind: type) -> Callable[[Reader], None]:
    return lambda r: r.stack.append(kind())


def _push_tuple(count: int) -> Callable[[Reader], None]:
    def step(r: Reader) -> None:
        items = [r.pop() for _ in range(count)]
        r.stack.append(tuple(reversed(items)))

    return step


def _push_dict(r: Reader) -> None:
    items = r.pop_mark()
    r.stack.append({})
    r.set_items(items)


def _set_item(r: Reader) -> None:
    value, key = r.pop(), r.pop()
    r.set_items([key, value])


def _append(r: Reader) -> None:
    value = r.pop()
    r.append([value])


def _pop(r: Reader) -> None:
    if r.marks and r.marks[-1] == len(r.stack):
        r.marks.pop()
    else:
        r.pop()


STOP = ord(".")
STEPS: dict[int, Callable[[Reader], Any]] = {
    0x80: Reader.protocol,
    0x95: Reader.frame,
    # constants and numbers
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("K"): _push_number("<B"),
    ord("M"): _push_number("<H"),
    ord("J"): _push_number("<i"),
    ord("G"): _push_number(">d"),
    0x8A: lambda r: r.long(r.number("<B")),
    0x8B: lambda r: r.long(r.number("<i")),
    ord("I"): Reader.text_int,
    ord("L"): lambda r: r.stack.append(int(r.line(MAX_TEXT_NUMBER).rstrip(b"L"))),
    ord("F"): lambda r: r.stack.append(float(r.line(MAX_TEXT_NUMBER))),
    # text and bytes; bytes stay views of the file
    0x8C: lambda r: r.unicode(r.number("<B")),
    ord("X"): lambda r: r.unicode(r.number("<I")),
    0x8D: lambda r: r.unicode(r.number("<Q")),
    ord("V"): Reader.text_unicode,
    ord("C"): lambda r: r.stack.append(r.take(r.number("<B"))),
    ord("B"): lambda r: r.stack.append(r.take(r.number("<I"))),
    0x8E: lambda r: r.stack.append(r.take(r.number("<Q"))),
    0x96: lambda r: r.stack.append(r.take(r.number("<Q"))),  # a bytearray
    # containers
    ord("("): lambda r: r.marks.append(len(r.stack)),
    ord(")"): _push(()),
    0x85: _push_tuple(1),
    0x86: _push_tuple(2),
    0x87: _push_tuple(3),
    ord("t"): lambda r: r.stack.append(tuple(r.pop_mark())),
    ord("]"): _push_new(list),
    ord("l"): lambda r: r.stack.append(r.pop_mark()),
    ord("a"): _append,
    ord("e"): lambda r: r.append(r.pop_mark()),
    ord("}"): _push_new(dict),
    ord("d"): _push_dict,
    ord("s"): _set_item,
    ord("u"): lambda r: r.set_items(r.pop_mark()),
    0x8F: _push_new(set),
    0x90: lambda r: r.add_items(r.pop_mark()),
    0x91: lambda r: r.stack.append(set(plain_keys(r.pop_mark()))),
    # stack and memo
    ord("0"): _pop,
    ord("1"): Reader.pop_mark,
    ord("p"): lambda r: r.remember(int(r.line(MAX_TEXT_NUMBER))),
    ord("q"): lambda r: r.remember(r.number("<B")),
    ord("r"): lambda r: r.remember(r.number("<I")),
    0x94: lambda r: r.remember(len(r.memo)),
    ord("g"): lambda r: r.recall(int(r.line(MAX_TEXT_NUMBER))),
    ord("h"): lambda r: r.recall(r.number("<B")),
    ord("j"): lambda r: r.recall(r.number("<I")),
    # objects
    ord("c"): Reader.text_global,
    0x93: Reader.stack_global,
    ord("R"): Reader.reduce,
    0x81: Reader.new_object,
    0x92: Reader.new_object_with_keywords,
    ord("b"): Reader.build,
    ord("Q"): lambda r: r.stack.append(r.rules.persistent_id(r.pop())),
}
