"""Large JSON files of the form {name: {...}, name: {...}}, one value at a time.

The file is mapped, not read. One pass over its braces and strings finds where each value of the outermost object
stands; a value is parsed when it is asked for, and forgotten by whoever asked.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["JsonIndex"]

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]')
_COLON = re.compile(rb"\s*:\s*")


class JsonIndex(Mapping[str, Any]):
    """`with JsonIndex(path) as index: index["name"]`, `for name in index`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, or is not an object of objects.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty; copy it again")
        self.path = path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._places = self._scan()
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> JsonIndex:
        """The index itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let go of the file."""
        self._map.close()

    def __iter__(self) -> Iterator[str]:
        """Names, in the file's order."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; nothing is parsed."""
        return name in self._places

    def __getitem__(self, name: str) -> Any:
        """The value of a name, parsed.

        Raises:
            KeyError: there is no such name.
            ValueError: the value is damaged.
        """
        start, stop = self._places[name]
        try:
            return json.loads(self._map[start:stop])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is damaged in the part {name!r} ({error}); copy it again") from None

    def _scan(self) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        depth, name, start = 0, None, 0
        for token in _TOKEN.finditer(self._map):
            text = token.group()
            if text == b"{":
                depth += 1
                if depth == 2:
                    start = token.start()
            elif text == b"}":
                depth -= 1
                if depth == 1:
                    if name is None:
                        raise ValueError(f"{self.path} is damaged or of another layout: a part of it has no name")
                    places[name], name = (start, token.end()), None
                if depth < 0:
                    break
            elif depth == 1:
                colon = _COLON.match(self._map, token.end())
                if colon is None or self._map[colon.end() : colon.end() + 1] != b"{":
                    raise ValueError(
                        f"{self.path} is damaged or of another layout: {text[:60].decode(errors='replace')} "
                        "should be followed by an object"
                    )
                name = json.loads(text)
        if depth != 0 or not places:
            raise ValueError(f"{self.path} is cut short, empty or no JSON of the expected layout; copy it again")
        return places
