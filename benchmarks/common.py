"""What every benchmark shares: the facts that make a number comparable, and one way to write it down.

A benchmark is a script, run as `python benchmarks/NAME.py` from the checkout; it ends with
`write_result("NAME", {...})`, which writes `benchmarks/results/NAME.json`:

    {"name": ..., "command": ..., "date": ..., "commit": {...}, "machine": {...}, "numbers": {...}}
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Facts about the hardware and the libraries; no host name, user name or path."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _cpu_name() -> str:
    """Name of the processor; on Linux `platform.processor()` is empty or says x86_64 only."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> dict[str, Any]:
    """`{"hash": ..., "dirty": ...}` of the checkout; both None outside a git checkout.

    `dirty` ignores `benchmarks/results`, so that writing one result does not taint the next.
    """

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--verify", "HEAD")
    status = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return {"hash": head, "dirty": None if status is None else bool(status)}


def write_result(name: str, payload: Mapping[str, Any], *, folder: str | Path | None = None) -> Path:
    """Write `payload` as `benchmarks/results/NAME.json`, atomically, and return its path.

    Args:
        name: file name without its ending.
        payload: the numbers. Tensors, arrays and numpy scalars become lists and numbers; floats keep six
            significant digits; a value that is not finite is written as null, since JSON has no name for it.
        folder: where to write instead of `benchmarks/results`.

    Raises:
        TypeError: `payload` holds something JSON cannot express.
    """
    target = Path(folder) if folder is not None else RESULTS
    result = {
        "name": name,
        "command": f"python benchmarks/{shlex.join(map(_no_folder, sys.argv))}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "numbers": _plain(payload),
    }
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"  # first: an error then leaves no file
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{name}.json"
    handle, temporary = tempfile.mkstemp(dir=target, prefix=f".{name}.", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes 0600, which a shared checkout cannot read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _no_folder(argument: str) -> str:
    """A folder says nothing outside the machine it was on: keep the last part of a path, and the name in NAME=PATH."""
    name, equals, path = argument.rpartition("=")
    # A row's name may hold a slash, too.
    return (
        name + equals + Path(path).name if os.sep in path and (os.path.isabs(path) or Path(path).exists()) else argument
    )


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return _plain(value.detach().cpu().tolist())
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def best_of(
    function: Callable[[], object],
    *,
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the fastest of `repeats` calls: on a shared machine the minimum is the least disturbed.

    With `clock=time.process_time` and one thread, what else the machine does hardly matters.
    """
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times)
