"""Writing a corpus: seeds, splits, shards, resume, manifest.

A corpus is a folder of ``train-00000.npz`` ..., ``val-*.npz``, ``test-*.npz``, hands alone in ``single-train-*.npz``,
``single-val-*.npz``, ``single-test-*.npz``, each written by `TwoHands.save`, and a ``manifest.json``. The generator of
a shard is seeded from (seed, split, index) alone, so the result does not depend on the number of workers and no two
splits share a seed or a hand. Every file appears whole or not at all; an interrupted run leaves complete shards, and
the same call again makes what is missing or damaged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interhand_prior._version import __version__
from interhand_prior.data.manifest import MANIFEST, write_manifest
from interhand_prior.params import TwoHands

from .archetypes import SINGLE, kind_weights
from .pairs import Tally, make_shard, make_singles
from .statistics import summarise

SPLITS: tuple[str, ...] = ("train", "val", "test")
_FORMAT = 2


@dataclass(frozen=True)
class CorpusConfig:
    """What determines every number of a corpus (with the package's version).

    Attributes:
        train, val, test: pairs in each split. seed: any integer >= 0. loose_share: share of loosely near pairs, the
        rest are named kinds. shard_size: pairs, or hands alone, per file. single_train, single_val, single_test: hands
        alone in each split. archetypes: only these named kinds; None: all but those held out.
    """

    train: int
    val: int
    test: int
    seed: int = 0
    loose_share: float = 0.5
    shard_size: int = 600
    single_train: int = 0
    single_val: int = 0
    single_test: int = 0
    archetypes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        singles = [f"single_{split}" for split in SPLITS]
        for name in ("train", "val", "test", "seed", *singles):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
        if self.train + self.val + self.test == 0:
            raise ValueError("the corpus would be empty: ask for at least one pair")
        kind_weights(self.archetypes)  # refuses unknown names
        if not 0 <= self.loose_share <= 1:
            raise ValueError(f"loose_share must lie in [0, 1], got {self.loose_share!r}")
        if not isinstance(self.shard_size, int) or self.shard_size < 1:
            raise ValueError(f"shard_size must be an integer >= 1, got {self.shard_size!r}")

    def shards(self) -> list[Shard]:
        """Every shard, in order, those of hands alone last."""
        out = []
        for split in (*SPLITS, *(f"single_{s}" for s in SPLITS)):
            total = getattr(self, split)
            for index, start in enumerate(range(0, total, self.shard_size)):
                out.append(Shard(split.replace("_", "-"), index, min(self.shard_size, total - start)))
        return out

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON gives them back."""
        names = None if self.archetypes is None else list(self.archetypes)
        return asdict(self) | {"archetypes": names}


@dataclass(frozen=True)
class Shard:
    """One file of a corpus: its split ("train", "single-train", ...), its number there, how many samples it holds."""

    split: str
    index: int
    pairs: int

    @property
    def single(self) -> bool:
        """Whether it holds hands alone."""
        return self.split.startswith(SINGLE)

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.split}-{self.index:05d}.npz"


def shard_seed(seed: int, split: str, index: int) -> int:
    """63 bits from (seed, split, index), by numpy's SeedSequence."""
    order = (*SPLITS, *(f"{SINGLE}-{s}" for s in SPLITS))
    state = np.random.SeedSequence(seed, spawn_key=(order.index(split), index)).generate_state(2, np.uint32)
    return (int(state[0]) << 31) ^ int(state[1])


def write_shard(folder: str, config: CorpusConfig, shard: Shard) -> tuple[Shard, Tally, float]:
    """Make one shard and write it whole or not at all; one thread, so that sums do not depend on the machine's load."""
    threads, began = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(shard_seed(config.seed, shard.split, shard.index))
        with torch.autograd.set_grad_enabled(True):
            if shard.single:
                pairs, tally = make_singles(shard.pairs, generator), Tally()
            else:
                pairs, tally = make_shard(shard.pairs, config.loose_share, generator, kind_weights(config.archetypes))
    finally:
        torch.set_num_threads(threads)
    pairs.save(Path(folder) / shard.name)
    return shard, tally, time.perf_counter() - began


def is_complete(path: Path, pairs: int) -> bool:
    """Whether a shard is there, readable and of the right length."""
    try:
        found = TwoHands.load(path)
    except (FileNotFoundError, ValueError):
        return False
    return tuple(found.batch_shape) == (pairs,) and "archetype" in found.extras


def generate_corpus(
    out: str | os.PathLike[str],
    num: int,
    *,
    val_num: int | None = None,
    test_num: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    loose_share: float | None = None,
    shard_size: int = 600,
    single_num: int | None = None,
    archetypes: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a corpus of interacting pairs on the bundled open hand.

    Args:
        out: folder, made if needed; one that holds part of the same corpus is completed.
        num: training pairs.
        val_num: validation pairs; default one twentieth of num.
        test_num: test pairs; default one twentieth of num.
        seed: the same seed gives the same corpus, whatever the workers.
        workers: processes, one thread each; default all CPUs this process may use. 1 works in this process. (With more
            than one, a script must guard its entry with ``if __name__ == "__main__"``.)
        loose_share: share of pairs that are loosely near; the default, one half, gives the published relative poses
            (none where ``archetypes`` are given).
        shard_size: pairs per file.
        single_num: hands alone for training, with a twentieth of that each for validation and test; default one fifth
            of num (none where ``archetypes`` are given).
        archetypes: make only these named kinds, among them those that no other corpus holds
            (`archetypes.HELD_OUT`).
        progress: show a progress bar.

    Returns:
        The manifest.

    Raises:
        ValueError: a bad argument, or ``out`` holds a different corpus.
        OSError: a file cannot be written; complete shards stay.
    """
    if loose_share is None:
        loose_share = 0.5 if archetypes is None else 0.0
    if single_num is None:
        single_num = num // 5 if archetypes is None else 0
    config = CorpusConfig(
        train=num,
        val=num // 20 if val_num is None else val_num,
        test=num // 20 if test_num is None else test_num,
        seed=seed,
        loose_share=float(loose_share),
        shard_size=shard_size,
        single_train=single_num,
        single_val=single_num // 20,
        single_test=single_num // 20,
        archetypes=None if archetypes is None else tuple(dict.fromkeys(archetypes)),
    )
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    folder = Path(out)
    _claim(folder, config)
    shards = config.shards()
    missing = [s for s in shards if not is_complete(folder / s.name, s.pairs)]
    began, tally, seconds = time.perf_counter(), Tally(), 0.0
    for _, found, spent in _run(folder, config, missing, workers, _bar(config, missing, progress)):
        tally.tried.update(found.tried)
        tally.kept.update(found.kept)
        tally.arms += found.arms
        seconds += spent
    manifest = _manifest(config) | {
        "complete": True,
        "shards": {s.name: s.pairs for s in shards},
        "generated_now": {
            "pairs": sum(s.pairs for s in missing if not s.single),
            "singles": sum(s.pairs for s in missing if s.single),
            "wall_seconds": round(time.perf_counter() - began, 1),
            "process_seconds": round(seconds, 1),
            # before shards were cut to length, so the counts may exceed the pairs kept
            "acceptance": {k: round(tally.kept[k] / n, 3) for k, n in sorted(tally.tried.items())},
            "tried": dict(sorted(tally.tried.items())),
            "named_refused_for_arms": tally.arms,
        },
        "singles": {s: getattr(config, f"single_{s}") for s in SPLITS},
        "statistics": summarise(TwoHands.load(folder / s.name) for s in shards if not s.single),
    }
    write_manifest(folder, manifest)
    return manifest


def _manifest(config: CorpusConfig) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": __version__,
        "dataset": "synthetic corpus of interhand_prior",
        "licence": "needs none: made by interhand_prior on its open hand",
        "hands": "open hand",
        "config": config.as_json(),
    }


def _claim(folder: Path, config: CorpusConfig) -> None:
    """Make the folder ours, or refuse: shards of two corpora must not mix."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text())
            same = found["config"] == config.as_json() and found["format"] == _FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a corpus manifest ({error}); choose another folder") from error
        if not same:
            raise ValueError(
                f"out={str(folder)!r} holds another corpus (config {found.get('config')}), but {config.as_json()} was "
                "asked for; choose another folder, or repeat its arguments to complete it"
            )
        return
    if any(folder.glob("*-[0-9][0-9][0-9][0-9][0-9].npz")):
        raise ValueError(f"out={str(folder)!r} holds shards but no {MANIFEST}; choose an empty folder")
    write_manifest(folder, _manifest(config) | {"complete": False})


def _bar(config: CorpusConfig, missing: list[Shard], progress: bool) -> Callable[[int], None]:
    if not progress:
        return lambda done: None
    from tqdm import tqdm

    total = sum(s.pairs for s in config.shards())
    bar = tqdm(total=total, initial=total - sum(s.pairs for s in missing), unit="pair", desc="corpus")

    def advance(done: int) -> None:
        bar.update(done)
        if bar.n >= total:
            bar.close()

    return advance


def _run(
    folder: Path, config: CorpusConfig, shards: list[Shard], workers: int | None, advance: Callable[[int], None]
) -> Iterator[tuple[Shard, Tally, float]]:
    """Make shards in this process or in several."""
    count = min(workers or _cpus(), len(shards))
    if count <= 1:
        for shard in shards:
            result = write_shard(str(folder), config, shard)
            advance(shard.pairs)
            yield result
        return
    # Fresh processes: forking one whose torch has started threads may hang.
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"))
    try:
        pending = {pool.submit(write_shard, str(folder), config, shard) for shard in shards}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                advance(result[0].pairs)
                yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


__all__ = ["MANIFEST", "SPLITS", "CorpusConfig", "Shard", "generate_corpus", "is_complete", "shard_seed"]
