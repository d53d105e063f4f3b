"""What is here and what is in a person's files: `interhand-prior doctor [PATH ...]`.

Versions and extras first, then the files inside the package, then each path: MANO files, a prior, a feature network,
the released checkpoint and its statistics, a corpus. Nothing is run, changed or sent.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["diagnose", "main"]

_NEEDED = ("torch", "numpy", "safetensors", "huggingface_hub", "smplx")
_EXTRAS = {
    "viewer": ("pillow",),
    "train": ("accelerate", "tensorboard"),
    "metrics": ("manifold3d",),
    "build": ("scipy", "scikit-image"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis; returns 0, or 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="interhand-prior doctor",
        description="Say what is installed and what is in your files. Nothing is run, changed or sent.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH",
        help="MANO folder or file, prior, corpus, .pth checkpoint or folder with its statistics")  # fmt: skip
    sound = True
    for line, good in diagnose(parser.parse_args(argv).paths):
        sound &= good
        print(("  " if good else "! ") + line)
    return 0 if sound else 1


def diagnose(paths: Sequence[Path] = ()) -> Iterator[tuple[str, bool]]:
    """Lines, each with whether it is well."""
    yield from _installed()
    yield from _bundled()
    for path in paths:
        yield from _path(Path(path))


def _installed() -> Iterator[tuple[str, bool]]:
    from ._version import __version__

    yield f"interhand_prior {__version__}, Python {platform.python_version()}, {platform.system()}", True
    for name in _NEEDED:
        version = _version(name)
        yield f"{name} {version or 'is missing: pip install ' + name}", version is not None
    for extra, names in _EXTRAS.items():
        missing = [name for name in names if _version(name) is None]
        state = f'needs {", ".join(missing)}: pip install "interhand_prior[{extra}]"' if missing else "is there"
        yield f"extra [{extra}] {state}", True  # nobody must have it
    import torch

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield f"GPU: {', '.join(found) or 'none that torch sees'}", True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _bundled() -> Iterator[tuple[str, bool]]:
    from .hands import open_hands
    from .hub import BUNDLED_FOLDER

    yield _tried("open hand", lambda: f"{open_hands().right.v_template.shape[0]} vertices")
    yield _tried("bundled prior", lambda: _prior(BUNDLED_FOLDER))


def _path(path: Path) -> Iterator[tuple[str, bool]]:
    """What a path is, by its looks; then whether it is whole."""
    yield f"{path}:", path.exists()
    if not path.exists():
        yield "there is nothing", False
    elif path.is_file():
        yield from _file(path)
    elif (path / "config.json").is_file():
        yield _checkpoint(path)
    elif any(path.glob("*mano_mean*.npy")) or any(path.glob("rel_*.npy")):
        yield _tried("statistics of the released checkpoint", lambda: _statistics(path))
    elif any(path.glob("train-*.npz")) or any(path.glob("single-train-*.npz")):
        yield _tried("corpus", lambda: _corpus(path))
    else:
        yield _tried("MANO folder", lambda: _mano(path))


def _file(path: Path) -> Iterator[tuple[str, bool]]:
    if path.suffix.lower() == ".zip":
        yield "an archive: unpack it, and give the folder that comes out", False
    elif path.suffix in (".pth", ".pt", ".ckpt"):
        yield _tried("checkpoint", lambda: _released(path))
    elif path.suffix == ".npz" and not path.name.upper().startswith("MANO"):
        yield _tried("pairs", lambda: _pairs(path))
    else:
        yield _tried("MANO file", lambda: _mano_file(path))


def _tried(what: str, look: Callable[[], str]) -> tuple[str, bool]:
    try:
        return f"{what}: {look()}", True
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        return f"{what}: {' '.join(str(error).split())}", False


def _checkpoint(path: Path) -> tuple[str, bool]:
    prior = _tried("prior", lambda: _prior(path))
    if prior[1]:
        return prior

    def features() -> str:
        from .metrics.features import load_feature_network

        network = load_feature_network(path)
        return f"{network.dimension} features, {sum(p.numel() for p in network.parameters()):,} parameters"

    found = _tried("feature network", features)
    return found if found[1] else prior


def _prior(path: Path) -> str:
    from .hub import load_prior
    from .networks import network_facts

    prior = load_prior(path)
    count = sum(p.numel() for p in prior.denoiser.parameters())
    kind = network_facts(prior.denoiser.config)["network"]
    lacking = [
        text
        for text, missing in (
            ("no gate (prior.trust)", prior.calibration is None),
            ("no measured uncertainty", prior.calibration is None or prior.calibration.noise_table is None),
            ("no score", prior.critics is None),
        )
        if missing
    ]
    remedy = f"; {', '.join(lacking)}: prior.calibrate(pairs)" if lacking else ""
    return f'network "{kind}", {count:,} parameters{remedy}'


def _mano(path: Path) -> str:
    from .hands.mano import load_mano_folder

    left, right = load_mano_folder(path)
    shapes = (
        "the left shapedirs are those of the right hand, as in the released file; they are mended when it is loaded"
        if left.shapedirs_fixed
        else "the left shapedirs are its own (already mended, or made so)"
    )
    pca = "with" if right.hands_components is not None else "without"
    return f"both hands, {right.shapedirs.shape[-1]} betas, {pca} PCA components; {shapes}"


def _mano_file(path: Path) -> str:
    from .hands.arrays import HandArrays
    from .hands.mano import read_mano_file

    arrays = HandArrays.from_mapping(read_mano_file(path), str(path))
    return f"a {arrays.side} hand, {arrays.shapedirs.shape[-1]} betas; load_prior(hands=...) takes its folder"


def _released(path: Path) -> str:
    from .convert.official import read_official, read_tensors

    found = read_tensors(path)
    if isinstance(found, dict) and "model_state_dict" in found:
        return f"{len(found['model_state_dict'])} tensors; interhand-prior convert official-features"
    network = read_official(path)
    count = sum(p.numel() for p in network.parameters()) - network.null.numel()
    average = ", with an average that is not read" if len(found) > 4 else ""
    return f"released network, {count:,} parameters{average}; interhand-prior convert official"


def _statistics(path: Path) -> str:
    from .convert.official import official_statistics

    mean, _ = official_statistics(path)
    return f"{len(mean)} means and variances"


def _corpus(path: Path) -> str:
    counts = {split: len(list(path.glob(f"*{split}-*.npz"))) for split in ("train", "val", "test")}
    first = sorted(path.glob("*train-*.npz"))[0]
    return f"{', '.join(f'{n} {split} files' for split, n in counts.items())}; {first.name} has {_pairs(first)}"


def _pairs(path: Path) -> str:
    from .params import TwoHands

    pairs = TwoHands.load(path)
    left, right = pairs.valid
    return f"{pairs.batch_shape.numel()} samples, {int((left & right).sum())} with both hands"


if __name__ == "__main__":
    sys.exit(main())
