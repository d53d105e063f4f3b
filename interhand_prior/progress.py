"""Progress bars on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["progress_bar"]


@contextlib.contextmanager
def progress_bar(total: int, text: str, unit: str, show: bool) -> Iterator[Callable[[int], Any]]:
    """A tqdm bar, or nothing; gives the function that moves it on. tqdm is imported only when a bar is wanted."""
    if not show:
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=text, unit=unit) as bar:
        yield bar.update
