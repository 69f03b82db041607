"""From pickles of weights to plain values and descriptions of tensors, without running anything.

`torch.load` and `pickle` build whatever a file asks for, however large, before anybody can look at it. This reads the same
opcodes and builds nothing but numbers, text, lists, dicts and the classes below, each in proportion to its size in the file.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_MAX_NAME = 300
_MAX_KEY = 1 << 10  # characters: looking up a key compares equal texts to their end
_MAX_BITS = 128  # of an integer, as in the state of a random generator; torch's own have half as many
# The largest model that open_clip knows, with its optimizer, has a fifth of this number of tensors.
MAX_TENSORS = 1 << 13
MAX_OPS = 50 * MAX_TENSORS  # torch writes 32 instructions for a tensor, and 48 for a parameter
# The classes and functions that state dicts, and what is saved with them, are made of. Any other name is refused.
_KNOWN = re.compile(
    r"torch\.(\w+Storage|Size|device|Tensor|per_\w+|b?float\d\w*|u?int\d+|complex\d+|q?u?int\d\w*|half|bool|double|float|long|int)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.storage\.\w+|torch\.serialization\._get_layout"
    r"|torch\.nn\.parameter\.Parameter|torch\.jit\._pickle\.(build|restore)_\w+|__torch__\..+"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|(builtins|__builtin__)\.(set|bytearray|complex)"
)
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_VALUES = (
    *("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
)  # instructions that push the value that follows them
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


class PickleError(ValueError):
    """A pickle is damaged, or does not hold weights."""


class UnsafeError(PickleError):
    """A pickle needs a class or function whose code would have to be run."""


@dataclass(frozen=True)
class Storage:
    """Numbers that lie elsewhere in the file, under `key`. `kind` is torch's name, such as `FloatStorage`."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class View:
    """A tensor as the file describes it, unchecked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """The name of a class or function; as a value, stands for what it would have built."""

    name: str


@dataclass
class Module:
    """An object of any class that a TorchScript archive defines: only its attributes, which objects may share."""

    attributes: dict[Any, Any] = field(default_factory=dict)


def read_pickle(stream: BinaryIO, storages: dict[str, Storage] | None = None, limit: int = MAX_OPS) -> Any:
    """The value of the next pickle in a stream. `storages` receives the storages that it refers to, by key.

    Raises PickleError for more than `limit` instructions and for any that make no sense, ValueError for unknown opcodes.
    """
    machine = _Machine({} if storages is None else storages)
    for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if count > limit:
            raise PickleError(f"has more than {limit} instructions")
        machine.step(opcode.name, arg)
    return machine.pop()


class _Machine:
    """The stack and the memo of one pickle.

    The time of an instruction is in proportion to what it pushes or pops, whatever the memo holds. So dicts keep only entries
    whose keys are quick to hash and to compare; see `_is_key`.
    """

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        push = self._stack.append
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "STACK_GLOBAL": lambda _: self._global(".".join(reversed((self.pop(), self.pop())))),
            "GLOBAL": lambda arg: self._global(arg.replace(" ", ".", 1)),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_SET": lambda _: push(Global("set")),
            "TUPLE": lambda _: push(tuple(self._marked())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._extend([self.pop()]),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._set_items(list(reversed((self.pop(), self.pop())))),
            "SETITEMS": lambda _: self._set_items(self._marked()),
            "ADDITEMS": lambda _: self._drop(self._marked()),
            "POP": lambda _: self._drop(self.pop()),
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "REDUCE": lambda _: self._reduce(),
            "NEWOBJ": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
            "BINPERSID": lambda _: self._storage(self.pop()),
        }
        self._steps |= dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._put)
        self._steps |= dict.fromkeys(("BINGET", "LONG_BINGET"), lambda key: push(self._memo[key]))
        self._steps |= dict.fromkeys(("PROTO", "FRAME", "STOP"), self._drop)
        self._steps |= dict.fromkeys(_VALUES, push)
        self._steps |= dict.fromkeys(
            ("LONG1", "LONG4"), lambda value: push(value if value.bit_length() <= _MAX_BITS else Global("int"))
        )

    def step(self, name: str, arg: Any) -> None:
        try:
            self._steps[name](arg)
        except (AttributeError, IndexError, KeyError, TypeError):
            raise PickleError(f"its instruction {name} makes no sense") from None

    def pop(self) -> Any:
        if not self._stack:
            raise PickleError("pops more from its stack than it pushed")
        return self._stack.pop()

    def _drop(self, _: Any) -> None:
        """Ignore a value."""

    def _marked(self) -> list[Any]:
        """Pop everything that was pushed since the last mark."""
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise PickleError("pops more from its stack than it pushed")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise PickleError("appends to something that is not a list")
        self._stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Global):
            return
        if type(target) is not dict:
            raise PickleError("sets items of something that is not a dict")
        target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if _is_key(key))

    def _global(self, name: str) -> None:
        if len(name) > _MAX_NAME or not _KNOWN.fullmatch(name):
            raise UnsafeError(name)
        self._stack.append(Global(name))

    def _reduce(self) -> None:
        """Replace a class or function and its arguments by what it would build."""
        args, maker = self.pop(), self.pop()
        name = maker.name
        if name in _TENSORS:
            storage, offset, shape, stride = args[:4]
            if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
                raise PickleError("describes a tensor by something other than a storage, a shape and strides")
            self._stack.append(View(storage, offset, shape, stride))
        elif name in _WRAPPED or name.startswith("torch.jit._pickle."):
            self._stack.append(args[0])
        elif name.startswith("__torch__."):
            self._stack.append(Module())
        elif name == "collections.OrderedDict" and not args:
            self._stack.append({})
        else:
            self._stack.append(Global(name))

    def _build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Module):
            if type(state) is not dict:
                raise PickleError("the state of a module is not a dict, so only its own code could use it")
            target.attributes = state

    def _storage(self, identity: Any) -> None:
        """Push the storage of a persistent id: `("storage", class, key, device, count)`, and one more in the old format."""
        if len(identity) not in (5, 6):
            raise PickleError("refers to something that is not a storage")
        tag, kind, key, _, count, *part = identity
        if tag != "storage" or type(key) is not str or not _is_key(key) or type(count) is not int or count < 0 or any(part):
            raise PickleError("refers to something that is not a storage")
        storage = Storage(kind.name.rpartition(".")[2], key, count)
        self._storages.setdefault(key, storage)
        self._stack.append(storage)


def _is_key(value: Any) -> bool:
    """Whether a value is text no longer than a name, or a small integer: larger integers can all have the same hash."""
    return len(value) <= _MAX_KEY if type(value) is str else type(value) is int and 0 <= value < 1 << 32
