"""Samples to train on: canonical rows, their statistics, shards on disk, mixtures of sources."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import other_hands, random_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interhand_prior import HandParams, TwoHands
from interhand_prior.canonical import SLICES, Normalizer, to_canonical
from interhand_prior.hands import open_hands
from interhand_prior.rotations import mirror_axis_angle
from interhand_prior.train import data as train_data
from interhand_prior.train import sources
from interhand_prior.train.data import fingerprint, load_corpus, mixture, read_samples, to_vectors
from interhand_prior.train.mixture import Mixture, quotas
from interhand_prior.train.store import (
    MANIFEST,
    StoreError,
    open_samples,
    scratch_folder,
    shards_of,
    write_samples,
)
from interhand_prior.train.vectors import OWN, WIDTH, Batch, Moments, Rows, Samples, VectorSamples, canonical_rows


def pairs_of(count: int, seed: int = 0) -> TwoHands:
    return random_pairs(count, seed=seed, dtype=torch.float32)


def with_gaps(count: int, seed: int = 0) -> TwoHands:
    """Every third left hand and every fifth right hand is missing, never both; a missing one holds NaN."""
    pairs, number = pairs_of(count, seed), torch.arange(count)
    left, right = number % 3 != 1, (number % 5 != 2) | (number % 3 == 1)
    spoil = lambda hand, there: hand.map(lambda value: torch.where(there[:, None], value, torch.nan))
    return TwoHands(spoil(pairs.left, left), spoil(pairs.right, right), left_valid=left, right_valid=right)


def all_of(samples: Samples) -> Batch:
    return samples.fetch(torch.arange(samples.count))


def assert_equal(found: Batch, wanted: Batch) -> None:
    for name in Batch._fields:
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def numbered(count: int, singles: int = 0, start: int = 0) -> VectorSamples:
    """Samples that hold their own number everywhere; the last ones are hands alone."""
    values = (start + torch.arange(count))[:, None].expand(-1, WIDTH).float()
    flags = (torch.arange(count) < count - singles)[:, None].expand(-1, 2)
    return VectorSamples.of([Rows(values, flags)], f"{count} from {start}")


# Rows ------------------------------------------------------------------------------------------------------------


def naive_samples(hands: TwoHands, mirror: bool) -> list[tuple[Tensor, Tensor, bool]]:
    """Anchor, partner and whether they are a pair, one after the other."""
    found: list[tuple[Tensor, Tensor, bool]] = []
    for hand in hands:
        left, right = (bool(mask) for mask in hand.valid)
        if left and right:
            for side in ("left", "right")[: 1 + mirror]:
                anchor, partner, _ = to_canonical(hand, open_hands(), side)  # type: ignore[arg-type]
                found.append((anchor, partner, True))
            continue
        alone = hand.left if left else hand.right
        pose = mirror_axis_angle(alone.hand_pose) if left else alone.hand_pose
        found.append((torch.zeros(64), torch.cat((pose, alone.betas, torch.zeros(9))), False))
    return found


@pytest.mark.parametrize("mirror", [True, False])
def test_samples_are_those_of_one_pair_after_the_other(mirror: bool) -> None:
    hands = with_gaps(30)
    samples = read_samples(hands, [], mirror=mirror).train
    found, wanted = all_of(samples), naive_samples(hands, mirror)
    assert samples.count == len(wanted)
    assert samples.singles == sum(not pair for _, _, pair in wanted) == 14
    torch.testing.assert_close(found.anchor, torch.stack([a for a, _, _ in wanted]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.partner, torch.stack([p for _, p, _ in wanted]), atol=1e-6, rtol=0)
    assert found.has_anchor.tolist() == found.has_relative.tolist() == [pair for _, _, pair in wanted]


def test_a_hand_alone_looks_the_same_in_the_mirror() -> None:
    hands = with_gaps(30)
    lone = hands[~(hands.valid[0] & hands.valid[1])]
    rows, mirrored = (canonical_rows(part, mirror=True) for part in (lone, lone.mirrored()))
    assert torch.equal(rows.values, mirrored.values)
    assert not rows.flags.any()


def test_a_missing_hand_leaves_the_other_one_as_it_was() -> None:
    pairs = pairs_of(6)
    alone = canonical_rows(replace(pairs, left_valid=torch.zeros(6, dtype=torch.bool)), mirror=True)
    given_left = canonical_rows(pairs, mirror=False)
    assert torch.equal(alone.values[:, OWN : 2 * OWN], given_left.values[:, OWN : 2 * OWN])
    alone = canonical_rows(replace(pairs, right_valid=torch.zeros(6, dtype=torch.bool)), mirror=True)
    assert torch.equal(alone.values[:, OWN : 2 * OWN], given_left.values[:, :OWN])


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_samples_and_their_hash_do_not_depend_on_batches(sizes: list[int]) -> None:
    hands = with_gaps(sum(sizes))
    parts = [hands[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    whole, cut = read_samples(hands, []).train, read_samples(parts, []).train
    assert whole.fingerprint == cut.fingerprint
    torch.testing.assert_close(all_of(cut), all_of(whole), atol=1e-6, rtol=0)
    assert fingerprint(parts) == fingerprint([hands])


def test_the_hash_tells_data_apart() -> None:
    hands = with_gaps(20)
    other = TwoHands(hands.left, hands.right, other_hands(), {}, hands.left_valid, hands.right_valid)
    there = replace(pairs_of(20), left_valid=torch.arange(20) > 0)
    different = [hands, hands[1:], hands.mirrored(), other, pairs_of(20), there, hands[list(range(19, -1, -1))]]
    assert len({fingerprint([part]) for part in different}) == len(different)
    assert fingerprint([hands]) == fingerprint([hands.to(torch.float64)])
    assert fingerprint([replace(pairs_of(20), right_valid=torch.ones(20, dtype=torch.bool))]) == fingerprint(
        [pairs_of(20)]
    )
    assert len({read_samples(hands, [], mirror=mirror).train.fingerprint for mirror in (True, False)}) == 2


# Statistics ------------------------------------------------------------------------------------------------------


def test_the_normaliser_is_that_of_fit() -> None:
    pairs = pairs_of(300)
    wanted = Normalizer.fit(to_vectors([pairs], mirror=True).partner)
    found = read_samples(pairs, []).train.moments().normalizer()
    assert torch.equal(found.mean, wanted.mean)
    assert torch.equal(found.std, wanted.std)


def test_hands_alone_count_for_the_own_part_only() -> None:
    samples = read_samples(with_gaps(200), []).train
    batch, moments = all_of(samples), samples.moments()
    assert (moments.own_count, moments.relative_count) == (samples.count, samples.count - samples.singles)
    own, relative = SLICES["own"], SLICES["relative"]
    found = moments.normalizer(floor=0.0)
    for entries, rows in ((own, slice(None)), (relative, batch.has_relative)):
        values = batch.partner[rows][:, entries].double()
        torch.testing.assert_close(found.mean[entries].double(), values.mean(0), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(found.std[entries].double(), values.std(0), atol=1e-7, rtol=1e-6)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_statistics_of_parts_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    values = 1000 + torch.randn(count, 64, generator=generator, dtype=torch.float64)
    flags = torch.rand(count, generator=generator) < 0.5
    values[:, OWN:] *= flags[:, None]
    parts = Moments.empty()
    for part, there in zip(values.split(sizes), flags.split(sizes), strict=True):
        parts = parts.merged(Moments.of(part, there))
    whole = Moments.of(values, flags)
    assert (parts.own_count, parts.relative_count) == (whole.own_count, whole.relative_count) == (count, flags.sum())
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(parts.square, whole.square, atol=1e-8, rtol=1e-8)
    if count:
        torch.testing.assert_close(whole.mean[:OWN], values[:, :OWN].mean(0), atol=1e-9, rtol=0)
        copies = whole.scaled(3.0)
        torch.testing.assert_close(copies.square, Moments.of(values.repeat(3, 1), flags.repeat(3)).square)


def test_few_samples_have_a_normaliser_or_say_why_not() -> None:
    lone = replace(pairs_of(3), left_valid=torch.zeros(3, dtype=torch.bool))
    normalizer = read_samples(lone, []).train.moments().normalizer()
    assert (normalizer.mean[OWN:] == 0).all()
    assert (normalizer.std[OWN:] == 1).all()
    with pytest.raises(ValueError, match="at least 2 samples"):
        read_samples(lone[:1], []).train.moments().normalizer()


# Shards ----------------------------------------------------------------------------------------------------------


def random_rows(count: int, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.rand(count, generator=generator) < 0.7
    values = torch.randn(count, WIDTH, generator=generator)
    values[:, :OWN] *= pair[:, None]
    values[:, 2 * OWN :] *= pair[:, None]
    return Rows(values, pair[:, None].expand(-1, 2))


def stored(folder: Path, count: int = 500, shard_rows: int = 4) -> Path:
    facts = {"fingerprint": "of these"}
    return write_samples(folder, [random_rows(count)], lambda: ("name", facts), shard_rows=shard_rows)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 9))
def test_shards_hold_the_same_rows(sizes: list[int], size: int) -> None:
    rows = random_rows(sum(sizes))
    blocks = [Rows(*parts) for parts in zip(rows.values.split(sizes), rows.flags.split(sizes), strict=True)]
    shards = list(shards_of(blocks, size))
    assert [len(shard.values) for shard in shards[:-1]] == [size] * (len(shards) - 1)
    assert all(0 < len(shard.values) == len(shard.flags) <= size for shard in shards)
    for found, wanted in zip(zip(*shards, strict=True), rows, strict=False):
        assert torch.equal(torch.cat(found), wanted)


def test_samples_from_shards_are_those_in_memory(tmp_path: Path) -> None:
    rows = random_rows(500)
    memory, mapped = VectorSamples.of([rows], "of these"), open_samples(stored(tmp_path))
    assert len(mapped.blocks) == 125
    assert (mapped.count, mapped.singles, mapped.fingerprint) == (500, memory.singles, "of these")
    for name in ("mean", "square"):
        torch.testing.assert_close(getattr(mapped.moments(), name), getattr(memory.moments(), name))
    chosen = torch.randint(500, (777,), generator=torch.Generator().manual_seed(1))
    for picked in (chosen, chosen[:1], chosen[:0], torch.arange(500).flip(0)):
        found = mapped.fetch(picked)
        assert_equal(found, memory.fetch(picked))
        there = rows.flags[picked, 0]
        assert torch.equal(found.has_anchor, there)
        assert torch.equal(found.partner, rows.values[picked, OWN:])
        assert torch.equal(found.anchor[:, :OWN], rows.values[picked, :OWN])
        identity = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0, 0])
        assert torch.equal(found.anchor[:, OWN:], there[:, None] * identity)
    for wrong in ([500], [-1], [3, 700]):
        for samples in (memory, mapped):
            with pytest.raises(IndexError, match=r"rows must be in 0\.\.499"):
                samples.fetch(torch.tensor(wrong))


def test_samples_can_be_read_in_other_threads(tmp_path: Path) -> None:
    samples = open_samples(stored(tmp_path))
    rows = torch.randint(500, (64,), generator=torch.Generator().manual_seed(2))
    found: list[Batch] = []
    threads = [threading.Thread(target=lambda: found.append(samples.fetch(rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for batch in found:
        assert_equal(batch, samples.fetch(rows))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_shards_are_mapped_not_read(tmp_path: Path) -> None:
    folder = stored(tmp_path, 100, 100)
    samples = open_samples(folder)
    assert str(folder / "vectors-00000.safetensors") in Path("/proc/self/maps").read_text()
    samples.blocks[0].values.zero_()  # a private copy of the page: the file stays as it is
    assert (open_samples(folder).blocks[0].values[0] != 0).any()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "flipped": lambda folder: flip(folder / "vectors-00001.safetensors"),
    "cut": lambda folder: os.truncate(folder / "vectors-00001.safetensors", 900),
    "missing": lambda folder: (folder / "vectors-00002.safetensors").unlink(),
    "exchanged": lambda folder: (folder / "vectors-00000.safetensors").replace(folder / "vectors-00001.safetensors"),
    "manifest cut": lambda folder: os.truncate(folder / MANIFEST, 100),
    "manifest lacks": lambda folder: edit(folder / MANIFEST, moments={}),
    "version": lambda folder: edit(folder / MANIFEST, format=99),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found(tmp_path: Path, kind: str) -> None:
    folder = stored(tmp_path, 40, 10)
    assert open_samples(folder).count == 40
    DAMAGES[kind](folder)
    with pytest.raises(StoreError, match="delete"):
        open_samples(folder)
    if kind != "flipped":
        with pytest.raises(StoreError, match="delete"):
            open_samples(folder, verify=False)


def test_a_folder_without_samples_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json does not exist"):
        open_samples(tmp_path)


def test_whoever_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[Rows]:
        yield random_rows(20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, rows(), lambda: ("name", {}), shard_rows=4)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_is_removed_in_the_end(tmp_path: Path) -> None:
    old, new = tmp_path / ".building-old", tmp_path / ".building-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "vectors-00000.safetensors").touch()
    os.utime(old, (0, 0))
    with scratch_folder(tmp_path) as scratch:
        assert sorted(tmp_path.iterdir()) == sorted([new, scratch])
    assert list(tmp_path.iterdir()) == [new]


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    first = stored(tmp_path, 40)
    manifest = (first / MANIFEST).read_text()
    assert stored(tmp_path, 30) == first
    assert (first / MANIFEST).read_text() == manifest
    assert list(tmp_path.iterdir()) == [first]


# Sources ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 + 20 pairs and 10 hands alone; 8 pairs and 4 hands alone to validate on; others that nobody may read."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    alone = with_gaps(60, seed=3)
    alone = alone[~(alone.valid[0] & alone.valid[1])]
    for name, hands in {
        "train-00000": pairs_of(40, 1),
        "train-00001": pairs_of(20, 2),
        "single-train-00000": alone[:10],
        "val-00000": pairs_of(8, 4),
        "single-val-00000": alone[10:14],
        "test-00000": pairs_of(9, 5),
        "single-test-00000": alone[14:],
    }.items():
        hands.save(folder / f"{name}.npz")
    return folder


def test_a_folder_gives_pairs_and_hands_alone(corpus: Path, tmp_path: Path) -> None:
    found = read_samples(corpus)
    assert (found.train.count, found.train.singles) == (2 * 60 + 10, 10)
    assert (found.val.count, found.val.singles) == (2 * 8 + 4, 4)
    assert torch.equal(TwoHands.cat(found.held_out).left.betas, pairs_of(8, 4).left.betas)
    assert found.hands is None
    wanted = to_vectors([pairs_of(40, 1), pairs_of(20, 2)], mirror=True)
    batch = all_of(found.train)
    for views, half in ((slice(0, 120, 2), slice(0, 60)), (slice(1, 120, 2), slice(60, 120))):
        assert torch.equal(batch.anchor[views], wanted.anchor[half])
        assert torch.equal(batch.partner[views], wanted.partner[half])
    limited = read_samples(corpus, mirror=False, max_val=3, hands=open_hands())
    assert (limited.train.count, limited.val.count, limited.val.singles) == (70, 9, 3)
    assert sum(map(len, limited.held_out)) == 3
    assert limited.hands is open_hands()
    lone = tmp_path / "lone"
    lone.mkdir()
    (corpus / "single-train-00000.npz").rename(lone / "single-train-00000.npz")
    assert read_samples(lone, []).train.count == 10
    (lone / "single-train-00000.npz").rename(lone / "single-val-00000.npz")
    found = read_samples(corpus, lone)
    assert (found.train.singles, found.val.count, found.held_out) == (0, 10, [])


def test_pairs_for_others_have_both_hands(corpus: Path) -> None:
    train, held_out = load_corpus(corpus)
    assert (sum(map(len, train)), sum(map(len, held_out))) == (60, 8)
    hands = with_gaps(60)
    whole = hands.valid[0] & hands.valid[1]
    train, held_out = load_corpus(hands)
    assert sum(map(len, [*train, *held_out])) == int(whole.sum())
    assert all(part.left_valid is None and part.right_valid is None for part in [*train, *held_out])
    assert len(to_vectors(train, mirror=False)) == int(whole[:57].sum())
    with pytest.raises(ValueError, match=r"val_pairs\[0\]: .* lack a hand"):
        to_vectors([hands], mirror=False, name="val_pairs")


def test_the_last_pairs_are_held_out_hands_alone_among_them() -> None:
    hands = with_gaps(60)
    found = read_samples(hands)
    assert_equal(all_of(found.train), all_of(read_samples(hands[:57], []).train))
    torch.testing.assert_close(all_of(found.val), all_of(read_samples(hands[57:], []).train), atol=1e-6, rtol=0)
    left, right = hands.valid
    assert sum(map(len, found.held_out)) == int((left & right)[57:].sum())
    empty = read_samples(hands, [])
    assert (empty.val.count, empty.held_out) == (0, [])
    assert all_of(empty.val).partner.shape == (0, 64)


def never(*args: object, **kwargs: object) -> Rows:
    raise AssertionError("computed again")


def test_shards_are_made_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    wanted = read_samples(corpus).train
    read = lambda **options: read_samples(corpus, [], cache=cache, memory_rows=0, **options).train
    first = read()
    assert_equal(all_of(first), all_of(wanted))
    assert first.fingerprint == wanted.fingerprint
    assert torch.equal(first.moments().square, wanted.moments().square)
    (folder,) = cache.iterdir()
    assert folder.name == f"samples-v1-{first.fingerprint[:16]}"
    with monkeypatch.context() as patch:
        patch.setattr(train_data, "canonical_rows", never)
        with monkeypatch.context() as unread:
            unread.setattr(sources, "check_hands", never)  # the stamps of the files are enough
            assert_equal(all_of(read()), all_of(wanted))
        for path in corpus.glob("*.npz"):
            os.utime(path, (1, 1))
        assert_equal(all_of(read()), all_of(wanted))  # and otherwise what is in them
        memory = [TwoHands.load(path) for path in sorted(corpus.glob("train-*.npz"))]
        memory.append(TwoHands.load(corpus / "single-train-00000.npz"))
        assert_equal(all_of(read_samples(memory, [], cache=cache, memory_rows=0).train), all_of(wanted))
        with pytest.raises(AssertionError, match="computed again"):
            read(mirror=False)
    pairs_of(40, 9).save(corpus / "train-00000.npz")
    changed = read()
    assert changed.fingerprint != first.fingerprint
    assert {path.name[11:] for path in cache.iterdir()} == {s.fingerprint[:16] for s in (first, changed)}


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing", "manifest cut", "gone"])
@pytest.mark.parametrize(("stamped", "others"), [(True, True), (True, False), (False, True)])
def test_damaged_shards_are_made_again(corpus: Path, tmp_path: Path, kind: str, stamped: bool, others: bool) -> None:
    cache = tmp_path / "cache"
    hands = [TwoHands.load(path) for path in sorted(corpus.glob("train-*.npz"))]
    read = lambda: read_samples(corpus if stamped else hands, [], cache=cache, memory_rows=0).train
    wanted = all_of(read())
    folder = next(cache.iterdir())
    if others:
        read_samples(hands[0], [], cache=cache, memory_rows=0)
    {
        "flipped": lambda: flip(folder / "vectors-00000.safetensors"),
        "cut": lambda: os.truncate(folder / "vectors-00000.safetensors", 900),
        "missing": lambda: (folder / "vectors-00000.safetensors").unlink(),
        "manifest cut": lambda: os.truncate(folder / MANIFEST, 100),
        "gone": lambda: (folder / MANIFEST).unlink(),
    }[kind]()
    assert_equal(all_of(read()), wanted)
    assert open_samples(folder).count == len(wanted.partner)
    assert len(list(cache.iterdir())) == 1 + others


def test_what_else_is_in_a_cache_stays(corpus: Path) -> None:
    (corpus / MANIFEST).write_text("{}")
    before = {path: path.read_bytes() for path in corpus.iterdir()}
    for _ in range(2):
        read_samples(corpus, [], cache=corpus.parent, memory_rows=0)
    assert {path: path.read_bytes() for path in corpus.iterdir()} == before


def test_small_data_and_validation_data_write_no_shards(corpus: Path, tmp_path: Path) -> None:
    found = read_samples(corpus, cache=tmp_path / "cache")
    assert found.train.count == 130
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_iterator_is_read_once_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_CHUNK", 10)
    hands, cache = with_gaps(100), tmp_path / "cache"
    on_disk = []

    def stream() -> Iterator[TwoHands]:
        for hand in hands:
            on_disk.append(len(list(cache.rglob("*.npz"))))
            yield hand

    found = read_samples(stream(), cache=cache, memory_rows=0)
    assert on_disk[-1] >= 8
    assert list(cache.rglob("*.npz")) == []
    wanted = read_samples(hands)
    assert found.train.fingerprint == wanted.train.fingerprint
    torch.testing.assert_close(all_of(found.train), all_of(wanted.train), atol=1e-6, rtol=0)
    torch.testing.assert_close(all_of(found.val), all_of(wanted.val), atol=1e-6, rtol=0)
    again = read_samples(stream(), cache=cache, memory_rows=0)
    assert [path.name[11:] for path in cache.iterdir()] == [again.train.fingerprint[:16]]
    in_memory = read_samples(iter(list(hands)))
    assert in_memory.train.fingerprint == wanted.train.fingerprint


def test_what_cannot_be_trained_on_is_refused(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    read = lambda hands: read_samples(hands, [], cache=cache, memory_rows=0)
    hands = with_gaps(30)
    left, right = (mask & (torch.arange(30) != 17) for mask in hands.valid)
    neither = replace(hands, left_valid=left, right_valid=right)
    with pytest.raises(ValueError, match=r"pairs: 1 of 30 pairs have neither .* at index 17"):
        read(neither)
    broken = hands.map(torch.clone)
    broken.right.betas[5] = torch.nan
    with pytest.raises(ValueError, match=r"pairs\[1\]\.right\.betas: 1 of 30 pairs hold NaN.* at index 5"):
        read([hands.to(torch.float64), broken])
    far = pairs_of(30)
    right = HandParams(**(far.right.as_dict() | {"transl": 1000 * far.right.transl}))
    with pytest.raises(ValueError, match="metres; divide transl by 1000"):
        read(TwoHands(far.left, right))
    for nothing in ([], pairs_of(0), iter([])):
        with pytest.raises(ValueError, match="nothing to train on"):
            read(nothing)
    with pytest.raises(ValueError, match=r"val_pairs\[1\] must be TwoHands, got int"):
        read_samples(hands, [hands, 1])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError, match=r"holds no train-\*\.npz"):
        read_samples(cache)
    (corpus / "train-00001.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train-00001\.npz is damaged"):
        read_samples(corpus)
    assert list(cache.iterdir()) == []


# Mixtures --------------------------------------------------------------------------------------------------------

SOURCES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 20)), min_size=2, max_size=5)


def mixed(sizes: list[tuple[int, float]]) -> Mixture:
    found = mixture(
        [numbered(count, start=1000 * i) for i, (count, _) in enumerate(sizes)], [weight for _, weight in sizes]
    )
    assert isinstance(found, Mixture)
    return found


@settings(deadline=None, max_examples=50)
@given(SOURCES)
def test_a_mixture_interleaves_its_sources(sizes: list[tuple[int, float]]) -> None:
    samples = mixed(sizes)
    source, place = samples.locate(torch.arange(samples.count))
    assert torch.bincount(source, minlength=len(sizes)).tolist() == samples.rows
    for i, (count, _) in enumerate(sizes):
        # The twin: go on through the source, and from its end back to its beginning.
        assert torch.equal(place[source == i], torch.arange(samples.rows[i]) % count)
        # Any window has its share.
        before = torch.cat((torch.zeros(1).double(), (source == i).double().cumsum(0)))
        expected = torch.arange(samples.count + 1, dtype=torch.float64) * (samples.rows[i] / samples.count)
        surplus = before - expected
        assert float(surplus.max() - surplus.min()) <= i + 1 + 1e-6


@settings(deadline=None, max_examples=50)
@given(SOURCES)
def test_a_pass_has_the_ratio_of_the_weights_and_all_samples(sizes: list[tuple[int, float]]) -> None:
    samples = mixed(sizes)
    total = sum(weight for _, weight in sizes)
    for rows, (count, weight) in zip(samples.rows, sizes, strict=True):
        assert abs(rows - samples.count * weight / total) <= len(sizes)
        times = torch.bincount(torch.arange(rows) % count, minlength=count).double()
        assert times.min() >= 1
        assert float(times.std(unbiased=False) / times.mean()) <= 0.05 + 1e-9
    assert min(rows / count for rows, (count, _) in zip(samples.rows, sizes, strict=True)) < 12


def test_batches_of_a_mixture_are_its_sources(tmp_path: Path) -> None:
    parts: list[Samples] = [numbered(30, 5), open_samples(stored(tmp_path, 50)), numbered(7, start=500)]
    samples = mixture(parts, [2, 1, 1])
    assert isinstance(samples, Mixture)
    rows = torch.randint(samples.count, (200,), generator=torch.Generator().manual_seed(0))
    source, place = samples.locate(rows)
    singly = [parts[int(s)].fetch(p.reshape(1)) for s, p in zip(source, place, strict=True)]
    assert_equal(samples.fetch(rows), Batch(*(torch.cat(values) for values in zip(*singly, strict=True))))
    assert_equal(samples.fetch(rows[:0]), parts[0].fetch(rows[:0]))
    assert samples.singles == 5 + parts[1].singles
    with pytest.raises(IndexError, match="rows must be in"):
        samples.fetch(torch.tensor([samples.count]))


def test_statistics_of_a_mixture_are_those_of_a_pass() -> None:
    # 30 and 20 samples in the ratio 2 : 1 come 2 and 1.5 times, or 4 and 3 times.
    samples = mixture([numbered(30, 5), numbered(20, start=100)], [2, 1])
    assert samples.count == 180
    batch = all_of(samples)
    wanted, found = Moments.of(batch.partner, batch.has_relative), samples.moments()
    assert found.own_count == pytest.approx(wanted.own_count)
    assert found.relative_count == pytest.approx(wanted.relative_count)
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.square, wanted.square)


def test_few_new_pairs_among_many_old_ones() -> None:
    assert quotas([1000, 200_000], [1, 1]) == [200_000, 200_000]
    assert quotas([1000, 200_000], [1000, 200_000]) == [1000, 200_000]
    assert quotas([100, 150], [1, 1]) == [300, 300]
    weightless = mixture([numbered(5), numbered(8, start=100)])
    assert sorted(all_of(weightless).partner[:, 0].tolist()) == [*range(5), *range(100, 108)]


def test_mixtures_are_told_apart() -> None:
    a, b = numbered(10), numbered(20, start=100)
    assert mixture([a], [3.0]) is a
    prints = [mixture(*args).fingerprint for args in (([a, b], [1, 1]), ([b, a], [1, 1]), ([a, b], [1, 2]), ([a], [1]))]
    assert len(set(prints)) == 4
    assert mixture([a, b], [2, 2]).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("counts", "weights", "words"),
    [
        ([], [], "samples is empty"),
        ([3, 4], [1.0], "weights must be 2 positive numbers"),
        ([3, 4], [1.0, 0.0], "weights must be 2 positive numbers"),
        ([3, 4], [1.0, float("inf")], "weights must be 2 positive numbers"),
        ([3, 0], [1.0, 1.0], r"samples\[1\] is empty"),
        ([3, 4], [1.0, 1e-12], "nearer to that of the counts"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(counts: list[int], weights: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mixture([numbered(count) for count in counts], weights)
