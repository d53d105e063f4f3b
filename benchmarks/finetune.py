"""Fine-tuning on 500 pairs of an archetype that the prior has never seen: what is gained there, and lost elsewhere.

    python benchmarks/finetune.py --data CORPUS      # about a minute of one core

The corpus generator has kinds of contact that no default corpus holds (`interhand-prior corpus --archetypes heart`).
The bundled prior is fine-tuned on 500 such pairs, once on them alone and once with one sample in two from the corpus,
and validated before and after on new pairs of that kind and on the corpus' validation split. The loss is that of
training at fixed levels (`train.validation`): 1 is a network that has learned nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write_result

from interhand_prior import TwoHandPrior, load_prior
from interhand_prior.canonical import SLICES
from interhand_prior.data.synthetic import generate_corpus
from interhand_prior.train import TrainConfig, train
from interhand_prior.train.data import Samples, read_samples
from interhand_prior.train.validation import validate


def losses(prior: TwoHandPrior, samples: Samples) -> dict[str, float]:
    """Validation losses of the pairs, with and without the anchor."""
    batch, normalizer = samples.fetch(torch.arange(samples.count)), prior.normalizer
    batch = batch._replace(anchor=normalizer.anchor(batch.anchor), partner=normalizer.partner(batch.partner))
    numbers = validate(prior.denoiser, batch, normalizer.std[SLICES["transl"]])
    return {name: numbers[name] for name in ("val_cond", "val_uncond", "val_transl_mm_0.5")}


def main() -> None:
    """Fine-tune twice and write `results/finetune.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the corpus that the prior was trained on")
    parser.add_argument("--archetype", default="heart", help="a kind of contact that it does not hold")
    parser.add_argument("--num", type=int, default=500, help="pairs to fine-tune on")
    parser.add_argument("--val-num", type=int, default=500, help="pairs of the new kind to validate on")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prior = load_prior()
    config = TrainConfig(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, warmup=50, ema=0.99, seed=args.seed,
        val_every=args.steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / args.archetype
        options: dict[str, Any] = {"archetypes": (args.archetype,), "seed": args.seed + 1, "progress": False}
        generate_corpus(new, args.num, val_num=args.val_num, test_num=0, single_num=0, **options)
        seen = {"new kind": read_samples(new).val, "corpus": read_samples(args.data).val}
        measure = lambda tuned: {name: losses(tuned, samples) for name, samples in seen.items()}
        numbers: dict[str, Any] = {"settings": {**vars(args), "data": "corpus"}, "before": measure(prior)}
        sources = {"new kind alone": ([new], [1.0]), "half corpus": ([new, args.data], [1.0, 1.0])}
        for name, (data, weights) in sources.items():
            tuned = train(data, config, Path(folder) / name.replace(" ", "-"), weights=weights, init=prior)
            numbers[name] = measure(tuned)
    print(write_result("finetune", numbers).read_text())


if __name__ == "__main__":
    main()
