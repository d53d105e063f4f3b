"""What a MANO pickle may name: each global of the official files, their names of today, and nothing else (fuzzed)."""

from __future__ import annotations

import pickle
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mano_makers import GENUINE_GLOBALS, dump, genuine, stand_in

from interhand_prior.hands import mano
from interhand_prior.hands.mano import read_mano_file
from interhand_prior.pickles import Rules

#: What Python 3, numpy 2 and newer scipys call the same things, and how Python 3 writes bytes.
OF_TODAY = {
    "numpy._core.multiarray _reconstruct", "numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer",
    "_codecs encode", "__builtin__ bytes", "builtins set", "scipy.sparse._csc csc_matrix", "scipy.sparse csc_matrix",
}  # fmt: skip
ALLOWED = sorted(tuple(name.split(" ")) for name in GENUINE_GLOBALS | OF_TODAY)

# What runs when a pickle is loaded in the ordinary way, or when something that it names is called.
_EVENTS = {"pickle.find_class", "os.system", "subprocess.Popen", "exec", "compile", "import", "open"}
_seen: list[str] | None = None


def _watch(event: str, arguments: Any) -> None:
    if _seen is not None and event in _EVENTS:
        _seen.append(f"{event} {arguments!r:.80}")


sys.addaudithook(_watch)


@contextmanager
def nothing_runs(path: Path) -> Iterator[None]:
    """Python's own audit events: nothing but `path` is opened, no name is looked up, nothing is called."""
    global _seen
    _seen = []
    try:
        yield
        others = [event for event in _seen if not (event.startswith("open") and path.name in event)]
        assert others == []
    finally:
        _seen = None


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def by_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def by_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def by_memo(module: str, name: str) -> bytes:
    """The strings come from the memo, where no reader of opcodes sees that they are a name."""
    return text(module) + b"q\x00" + text(name) + b"q\x01" + b"00h\x00h\x01\x93"


def by_inst(module: str, name: str) -> bytes:
    return f"(i{module}\n{name}\n".encode()


FORMS = [by_global, by_stack, by_memo, by_inst]

#: What is done with the named thing: nothing, a call, an instance, a state.
USES = [
    b"%s",
    b"%s)R",
    b"%sU\x01a\x85R",
    b"%s)\x81",
    b"%s)}\x92",
    b"(%sU\x01ao",
    b"%s)\x81}U\x01aK\x01sb",
    b"%s}b",
    b"%s0N",
]

#: Where it stands in a file that is otherwise whole.
PLACES = [
    b"\x80\x04%s.",
    b"\x80\x04}U\x07weights%ss.",
    b"\x80\x04}(U\x07weights%sU\x01fcnumpy\nndarray\n)\x81u.",
    b"\x80\x04]%sa0}.",
    b"\x80\x04%s0}.",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("globals") / "MANO_RIGHT.pkl"


def test_the_list_is_this_and_no_longer() -> None:
    assert sorted(mano._ALLOWED) == ALLOWED
    assert len(GENUINE_GLOBALS) == 7


@pytest.mark.parametrize("name", sorted(GENUINE_GLOBALS))
def test_each_of_the_seven_is_needed_and_accepted(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump(genuine("right"), path)
    with nothing_runs(path):
        read_mano_file(path)
    left_out = {key: kind for key, kind in mano._ALLOWED.items() if key != tuple(name.split(" "))}
    old = mano._RULES
    monkeypatch.setattr(mano, "_RULES", Rules(left_out, old.max_opcodes, old.unneeded, old.advice))
    with pytest.raises(ValueError, match=re.escape(f"names the global {name.replace(' ', '.')}, ")):
        read_mano_file(path)


@pytest.mark.parametrize("name", ALLOWED, ids=".".join)
@pytest.mark.parametrize("form", FORMS)
def test_a_listed_name_passes_in_every_form(name: tuple[str, str], form: Any, path: Path) -> None:
    path.write_bytes(b"\x80\x04" + form(*name) + b"0}.")
    with nothing_runs(path):
        assert read_mano_file(path) == {}


MODULES, NAMES = (sorted({pair[k] for pair in ALLOWED}) for k in (0, 1))
WORD = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
DOTTED = st.lists(WORD, min_size=1, max_size=3).map(".".join)
#: Things that are there and could be called.
REAL = st.sampled_from(
    sorted(
        (module, name)
        for module in (
            "builtins",
            "os",
            "posix",
            "nt",
            "subprocess",
            "pickle",
            "operator",
            "functools",
            "numpy",
            "types",
        )
        for name in dir(sys.modules.get(module))
        if module in sys.modules
    )
)
NEAR = st.one_of(
    st.tuples(st.sampled_from(MODULES), st.one_of(DOTTED, st.sampled_from(NAMES))),
    st.tuples(st.sampled_from(MODULES), st.sampled_from(NAMES), DOTTED).map(lambda t: (t[0], f"{t[1]}.{t[2]}")),
    st.tuples(st.sampled_from(MODULES), DOTTED, st.sampled_from(NAMES)).map(lambda t: (f"{t[0]}.{t[1]}", t[2])),
    st.sampled_from(ALLOWED).flatmap(
        lambda t: st.sampled_from(
            [
                (t[0].upper(), t[1]),
                (t[0], t[1].swapcase()),
                (t[0] + " ", t[1]),
                (t[0], " " + t[1]),
                (t[0], t[1] + "\t"),
                (f"{t[0]}.{t[1]}", ""),
                ("", f"{t[0]}.{t[1]}"),
                (t[0] + "\0", t[1]),
                (t[0].rpartition(".")[0], t[1]),
            ]
        )
    ),
)
ANY = st.tuples(DOTTED, DOTTED)


@settings(max_examples=150)
@given(
    st.one_of(REAL, NEAR, ANY).filter(lambda pair: pair not in mano._ALLOWED),
    st.sampled_from(FORMS),
    st.sampled_from(USES),
    st.sampled_from(PLACES),
)
def test_every_other_name_is_refused_by_its_name(
    path: Path, named: tuple[str, str], form: Any, use: bytes, place: bytes
) -> None:
    path.write_bytes(place % (use % form(*named)))
    with nothing_runs(path), pytest.raises(ValueError, match="the file was not executed") as caught:
        read_mano_file(path)
    assert f"names the global {'.'.join(named)}, which no MANO model needs" in str(caught.value)


OPCODES = st.one_of(
    st.sampled_from(
        [b"(", b")", b"]", b"}", b"\x8f", b"N", b"\x88", b"0", b"1", b"2", b"\x94", b"a", b"e", b"s", b"u"]
    ),
    st.sampled_from(
        [b"t", b"\x85", b"\x86", b"\x87", b"l", b"d", b"\x90", b"\x91", b"R", b"b", b"o", b"\x81", b"\x92"]
    ),
    st.sampled_from(ALLOWED).flatmap(lambda name: st.sampled_from([form(*name) for form in FORMS])),
    st.integers(0, 20).map(lambda k: b"h" + bytes([k])),
    st.integers(0, 3).map(lambda k: b"q" + bytes([k])),
    st.integers(-3, 300).map(lambda k: b"J" + struct.pack("<i", k)),
    st.sampled_from([*mano._KEYS, "__setstate__", "__class__", "kind", "state", "arguments", "f8", "latin1"]).map(text),
    st.binary(max_size=16).map(lambda data: b"C" + bytes([len(data)]) + data),
    st.sampled_from(
        [b"\x96" + struct.pack("<Q", 8) + bytes(8), b"\x95" + struct.pack("<Q", 3), b"\x8a\x01\x05", b"F1.5\n"]
    ),
    # What no MANO file holds.
    st.sampled_from([b"P1\n", b"Q", b"\x82\xf0", b"\x97", b"\x98"]),
)


@settings(max_examples=150)
@given(st.lists(OPCODES, max_size=30), st.booleans())
def test_programs_of_listed_names_make_nothing_but_arrays(path: Path, program: list[bytes], in_a_file: bool) -> None:
    head = b"\x80\x04" + (b"}" + text("weights") if in_a_file else b"")
    path.write_bytes(head + b"".join(program) + (b"s." if in_a_file else b"."))
    before = dict(vars(mano._Inert))
    found, said = {}, "executed"
    with nothing_runs(path):
        try:
            found = read_mano_file(path)
        except ValueError as error:
            said = str(error)
    assert "executed" in said
    assert all(type(value) is np.ndarray and value.dtype.kind in "fiub" for value in found.values())
    assert dict(vars(mano._Inert)) == before


def test_the_watch_sees_what_a_careless_reader_does(path: Path) -> None:
    """The two tests above can fail."""
    dump({"weights": stand_in("chumpy.ch", "Ch", x=1)}, path)
    path.write_bytes(b"\x80\x04" + by_global("os", "getpid") + b")R.")
    with pytest.raises(AssertionError, match=r"pickle\.find_class"), nothing_runs(path), path.open("rb") as file:
        pickle.load(file)
