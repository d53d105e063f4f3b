"""Pickles, read without running anything in them.

A pickle is a program: loading one calls whatever functions it names. Here a name that is not in a short list is
refused, and a name that is in it stands for an empty class made for that one file, which does nothing but keep what it
is given. Not even numpy's own reconstruction runs: arrays are rebuilt from their recorded shape, dtype and bytes. The
worst that a hostile file can do is to be refused.

`read_inert` is the reader, with rules of the caller's (`hands.mano` has MANO's); `read_plain` reads dictionaries,
lists, numbers, text and numpy arrays, as annotations of data sets hold them, and `read_npy` such a thing in an .npy.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Inert",
    "Malformed",
    "Refusal",
    "Rules",
    "Unreadable",
    "array",
    "from_bytes",
    "need",
    "pickle_in_npy",
    "read_inert",
    "read_npy",
    "read_plain",
    "shape_of",
]

# Objects from outside the stream, and the process-wide extension registry, which would bypass any list of names.
_REFUSED_OPCODES = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
_KINDS = "fiub"
_MAX_BYTES = 256 * 2**20
_MAX_DEPTH = 20


@dataclass(frozen=True)
class Rules:
    """What a file may hold.

    Attributes:
        allowed: names (module, name) that a pickle may mention, and the kind of inert object each becomes.
        max_opcodes: how long it may be.
        unneeded: end of the sentence that refuses a file.
        advice: what to do then.
    """

    allowed: Mapping[tuple[str, str], str]
    max_opcodes: int
    unneeded: str
    advice: str


class Unreadable(ValueError):
    """A file that is no pickle, or is refused. The message names it and says that nothing was executed."""


class Refusal(Unreadable):
    """Something that no file of the kind has."""

    def __init__(self, path: Path, what: str, rules: Rules) -> None:
        super().__init__(f"{path} {what}, {rules.unneeded}; the file was not executed. {rules.advice}")


class Malformed(Exception):
    """Content that makes no sense; readers turn it into an error that names the file."""


def need(condition: bool, what: str) -> None:
    """Raise Malformed unless `condition`."""
    if not condition:
        raise Malformed(what)


def read_inert(data: bytes, path: Path, rules: Rules) -> Any:
    """Plain Python objects, with `Inert` in the place of everything that a name stands for.

    Raises:
        Unreadable: it is cut short, or names something outside the list.
        Exception: a stream that makes no sense ends in any of a dozen.
    """
    _scan(data, path, rules)
    return _Reader(io.BytesIO(data), path, rules).load()


def _scan(data: bytes, path: Path, rules: Rules) -> None:
    """Look through the opcodes before anything is built from them."""
    count = 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data), 1):
            if opcode.name in _REFUSED_OPCODES:
                raise Refusal(path, f"refers to an object outside itself (opcode {opcode.name})", rules)
            if opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                if (module, name) not in rules.allowed:
                    raise Refusal(path, f"names the global {module}.{name}", rules)
            # Memo slots are numbered as they come; a slot far beyond would make pickle allocate that many.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(str(argument)) > count:
                raise Refusal(path, f"uses memo slot {argument} at opcode {count}", rules)
            if count > rules.max_opcodes:
                raise Refusal(path, f"has more than {rules.max_opcodes} opcodes", rules)
    except Refusal:
        raise
    except Exception as error:  # mostly ValueError; nothing of pickletools' inside may get out
        raise Unreadable(
            f"{path} is truncated or not a pickle ({error}, after {count} opcodes); nothing in it was executed"
        ) from error


class Inert:
    """Keeps what a pickle passes to it: constructor arguments and state. Does nothing."""

    kind = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> Inert:
        """Any arguments do."""
        self = object.__new__(cls)
        self.arguments = arguments
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """An unpickler that knows no functions, only inert classes made afresh for this file."""

    def __init__(self, stream: io.BytesIO, path: Path, rules: Rules) -> None:
        super().__init__(stream, encoding="latin1")
        self._path, self._rules = path, rules
        # All that a pickle can do to a class (opcode BUILD sets attributes) stays in this file's own classes.
        self._classes = {kind: type(kind, (Inert,), {"kind": kind}) for kind in set(rules.allowed.values())}

    def find_class(self, module: str, name: str) -> Any:
        kind = self._rules.allowed.get((module, name))
        if kind is None:
            raise Refusal(self._path, f"names the global {module}.{name}", self._rules)
        return self._classes[kind]

    def persistent_load(self, pid: Any) -> Any:
        raise Refusal(self._path, "refers to an object outside itself", self._rules)


# Rebuilding arrays from what was recorded -----------------------------------------------------------------------


def shape_of(value: Any) -> tuple[int, ...]:
    """A recorded shape, checked."""
    need(isinstance(value, (tuple, list)), "a shape that is no tuple")
    need(len(value) <= 4 and all(type(n) is int and 0 <= n < 2**31 for n in value), f"the shape {value!r:.80}")
    return tuple(value)


def array(state: Any) -> np.ndarray:
    """An array from numpy's state: (version,) shape, dtype, Fortran order, bytes."""
    need(isinstance(state, tuple) and len(state) in (4, 5), "an array without content")
    shape, dtype, fortran, buffer = state[-4:]
    return from_bytes(buffer, dtype, shape, fortran=bool(fortran))


def from_bytes(buffer: Any, dtype: Any, shape: Any, *, fortran: bool) -> np.ndarray:
    """An array from its bytes, in this machine's byte order."""
    kind, shape = _dtype(dtype), shape_of(shape)
    content = _bytes(buffer)
    need(len(content) == int(np.prod(shape, dtype=object)) * kind.itemsize, "an array of another length")
    array = np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
    return array.astype(kind.newbyteorder("="))


def _dtype(value: Any) -> np.dtype[Any]:
    need(isinstance(value, Inert) and value.kind == "dtype" and bool(value.arguments), "an array without a dtype")
    code, state = value.arguments[0], value.state
    good = isinstance(code, str) and len(code) == 2 and code[0] in _KINDS and code[1] in "1248"
    need(good, f"an array of dtype {code!r:.40}")
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    need(isinstance(order, str) and len(order) == 1 and order in "<>|=", "an odd byte order")
    try:
        return np.dtype(order + code)
    except TypeError as error:
        raise Malformed(str(error)) from None


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, Inert) and value.kind == "bytes" and value.arguments == ():
        return b""
    if isinstance(value, Inert) and value.kind == "encode":
        need(len(value.arguments) == 2 and value.arguments[1] == "latin1", "text in an odd encoding")
        value = value.arguments[0]
    need(isinstance(value, str), "an array without bytes")
    try:
        return value.encode("latin1")  # Python 2 wrote bytes as text
    except UnicodeEncodeError:
        raise Malformed("an array whose bytes are no bytes") from None


# Annotations of data sets ---------------------------------------------------------------------------------------

_ARRAYS = {
    (f"numpy.{core}.{module}", name): kind
    for core in ("core", "_core")
    for module, name, kind in (
        ("multiarray", "_reconstruct", "array"),
        ("multiarray", "scalar", "scalar"),
        ("numeric", "_frombuffer", "frombuffer"),
    )
}
_ARRAYS |= {("numpy", "ndarray"): "array", ("numpy", "dtype"): "dtype", ("_codecs", "encode"): "encode"}
_ARRAYS |= {("__builtin__", "bytes"): "bytes"}
_PLAIN = Rules(
    _ARRAYS,
    5_000_000,
    "but an annotation holds only dictionaries, lists, numbers, text and numpy arrays",
    "Fetch the data set from its authors again, and be careful with this copy",
)


def read_plain(path: str | os.PathLike[str]) -> Any:
    """A pickle of dictionaries, lists, numbers, text and numpy arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is too large, damaged, or names something else. Nothing of it has been executed.
    """
    path = Path(path)
    return _plain(_bytes_of(path), path)


def read_npy(path: str | os.PathLike[str]) -> Any:
    """An .npy file: of numbers, or of one pickled object (what `np.save(path, a_dictionary)` writes).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_plain`.
    """
    path = Path(path)
    data = _bytes_of(path)
    try:
        content = pickle_in_npy(data)
        if content is None:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{path} is damaged or not an .npy file ({error}); nothing in it was executed") from error
    values = _plain(content, path)
    if not isinstance(values, list) or len(values) != 1:
        raise ValueError(f"{path} holds an array of objects; it should hold one dictionary. Nothing was executed")
    return values[0]


def pickle_in_npy(data: bytes) -> bytes | None:
    """The pickle that an .npy file of objects holds behind its header; None: it holds numbers.

    Raises:
        Exception: it is damaged.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    dtype = read_header(stream)[2]
    if not dtype.hasobject:
        return None
    need(dtype == np.dtype(object), "an array of records that hold objects")
    return data[stream.tell() :]


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than any annotation; it was not opened")
    return path.read_bytes()


def _plain(data: bytes, path: Path) -> Any:
    try:
        return _rebuilt(read_inert(data, path, _PLAIN), {}, 0)
    except Unreadable:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); nothing in it was executed") from error


def _rebuilt(value: Any, known: dict[int, Any], depth: int) -> Any:
    """`value` with arrays and numbers in the place of inert objects."""
    # What is shared is rebuilt once: a small file can name one list a million times.
    need(depth < _MAX_DEPTH, "values nested too deeply")
    if id(value) in known:
        return known[id(value)]
    result: Any
    if isinstance(value, Inert):
        result = _known(value, known, depth)
    elif isinstance(value, dict):
        need(all(isinstance(key, (str, int)) for key in value), "an odd key")
        result = {key: _rebuilt(item, known, depth + 1) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_rebuilt(item, known, depth + 1) for item in value)
    else:
        need(value is None or isinstance(value, (bool, int, float, str, bytes)), f"a {type(value).__name__}")
        return value
    known[id(value)] = result
    return result


def _known(value: Inert, known: dict[int, Any], depth: int) -> Any:
    if value.kind == "scalar":
        need(len(value.arguments) == 2, "an odd number")
        return from_bytes(value.arguments[1], value.arguments[0], (), fortran=False)[()]
    if value.kind == "frombuffer":
        need(value.arguments[3:] in ((), ("C",), ("F",)) and len(value.arguments) >= 3, "an odd array")
        buffer, dtype, shape = value.arguments[:3]
        return from_bytes(buffer, dtype, shape, fortran=value.arguments[3:] == ("F",))
    if value.kind in ("encode", "bytes"):
        return _bytes(value)
    need(value.kind == "array", f"a {value.kind} where a value is wanted")
    state = value.state
    if isinstance(state, tuple) and len(state) in (4, 5) and isinstance(state[-1], list):  # an array of objects
        return [_rebuilt(item, known, depth + 1) for item in state[-1]]
    return array(state)
