"""How fast training is, and against what: the machine's matrix products, its loader, and a second process.

    python benchmarks/training.py                    # on made-up vectors; a minute on two free cores
    python benchmarks/training.py --data CORPUS      # reading from memory-mapped shards of a corpus

Step: the bundled prior's network, batches of 512, one thread, the fastest of several. Its floating-point operations
are counted by PyTorch; the peak is that of a product of two 1024 x 1024 matrices, measured in the same run.
Loader: samples a second that `fetch` gives, and what a step takes with it and with one batch used over and over.
Processes: one with one thread, one with two threads, and two (gloo) with one thread each, at equal work per process.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import best_of, write_result
from torch.utils.flop_counter import FlopCounterMode

from interhand_prior.canonical import SIZE, Normalizer
from interhand_prior.networks import NETWORKS, make_denoiser
from interhand_prior.schedule import CosineSchedule
from interhand_prior.train import TrainConfig
from interhand_prior.train.data import Samples, read_samples
from interhand_prior.train.diffusion import DiffusionTask, fresh
from interhand_prior.train.distributed import Processes, launched
from interhand_prior.train.trainer import Trainer
from interhand_prior.train.vectors import WIDTH, Rows, VectorSamples

BATCH = 512
STEPS = 12


def made_up(count: int = 100_000) -> Samples:
    """Standard normal vectors: training does not look at what they are."""
    values = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))
    return VectorSamples.of([Rows(values, torch.ones(count, 2, dtype=torch.bool))], "made up")


def make_trainer(samples: Samples, network: str, processes: Processes | None = None) -> Trainer:
    """A trainer that has taken its first steps."""
    config = TrainConfig(steps=10_000, batch_size=BATCH, amp="off")
    denoiser = fresh(lambda: make_denoiser(NETWORKS[network][0](alone=True)), 0)
    normalizer = Normalizer(torch.zeros(SIZE), torch.ones(SIZE))
    trainer = Trainer(DiffusionTask(denoiser, normalizer, CosineSchedule(), samples, None, config), config, processes)
    for _ in range(3):
        trainer.step()
    return trainer


def seconds_per_step(trainer: Trainer, steps: int = STEPS) -> float:
    """Of the fastest step."""
    return best_of(trainer.step, repeats=steps, warmup=2)


def matmul_peak() -> float:
    """Floating-point operations a second of a product of 1024 x 1024 matrices."""
    a, b = torch.randn(2, 1024, 1024, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(a)
    return 2 * 1024**3 / best_of(lambda: torch.mm(a, b, out=out), repeats=20, warmup=3)


def measure_step(samples: Samples, network: str) -> dict[str, Any]:
    """One thread: the step, its share of the peak, and what of it is optimiser."""
    torch.set_num_threads(1)
    trainer = make_trainer(samples, network)
    with FlopCounterMode(display=False) as counter:
        trainer.step()
    operations = counter.get_total_flops()
    step, peak = seconds_per_step(trainer), matmul_peak()
    optimizer = best_of(trainer.optimizer.step, repeats=STEPS)
    trainer.close()
    return {
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "ms_per_step": 1e3 * step,
        "samples_per_second": BATCH / step,
        "gflop_per_step": operations / 1e9,
        "peak_gflop_per_second": peak / 1e9,
        "share_of_peak": operations / step / peak,
        "optimizer_ms": 1e3 * optimizer,
    }


def measure_loader(samples: Samples, network: str) -> dict[str, Any]:
    """One thread: does reading hold up the step?"""
    torch.set_num_threads(1)
    order = torch.randperm(samples.count, generator=torch.Generator().manual_seed(1))
    parts = iter(order.repeat(1 + 60 * BATCH // samples.count).split(BATCH))
    fetch = best_of(lambda: samples.fetch(next(parts)), repeats=40, warmup=10)
    trainer = make_trainer(samples, network)
    with_reading = seconds_per_step(trainer)
    batch = trainer.samples(trainer.step_count)
    reader, trainer.samples = trainer.samples, lambda step: batch  # type: ignore[assignment]
    without = seconds_per_step(trainer)
    reader.close()
    return {
        "fetched_samples_per_second": BATCH / fetch,
        "step_ms": 1e3 * with_reading,
        "step_ms_on_one_batch": 1e3 * without,
        "ratio": with_reading / without,
    }


def measure_processes(network: str) -> dict[str, Any]:
    """Samples a second of all processes together; each has batches of 512."""
    runs = {"one process, one thread": (1, 1), "one process, two threads": (1, 2), "two processes": (2, 1)}
    speeds = {name: _launch(count, threads, network) for name, (count, threads) in runs.items()}
    first = speeds["one process, one thread"]
    return {"samples_per_second": speeds, "gain": {name: speed / first for name, speed in speeds.items()}}


def _launch(count: int, threads: int, network: str) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        command = [sys.executable, __file__, "--as-process", str(answer), str(threads), network]
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
        ranks = [{"RANK": str(i), "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(count)} for i in range(count)]
        children = [subprocess.Popen(command, env={**os.environ, **shared, **rank}) for rank in ranks]
        if any([child.wait() for child in children]):
            raise RuntimeError("a process failed; see its message above")
        return float(answer.read_text())


def as_process(answer: str, threads: int, network: str) -> None:
    """One of several: time steps together; the main one writes samples a second of all."""
    torch.set_num_threads(threads)
    processes = launched("cpu")
    trainer = make_trainer(made_up(20_000), network, processes)
    times = []
    for _ in range(STEPS):
        processes.wait()
        begun = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - begun)
    trainer.close()
    if processes.is_main:
        Path(answer).write_text(str(processes.count * BATCH / min(times)))
    processes.wait()
    if processes.count > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    """Measure and write `results/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a corpus; its vectors are read from memory-mapped shards")
    parser.add_argument("--as-process", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_process:
        answer, threads, network = args.as_process
        return as_process(answer, int(threads), network)
    with tempfile.TemporaryDirectory() as cache:
        shards = made_up()
        if args.data:
            shards = read_samples(args.data, cache=cache, memory_rows=0).train
        numbers = {
            "batch": BATCH,
            "step": {name: measure_step(made_up(), name) for name in NETWORKS},
            "loader": {"samples": shards.count, "mapped": bool(args.data), **measure_loader(shards, "tokens")},
            "processes": measure_processes("tokens"),
        }
    print(write_result("training", numbers).read_text())
    return None


if __name__ == "__main__":
    main()
