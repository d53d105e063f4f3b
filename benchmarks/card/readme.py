"""The words and tables of the data card, from its numbers: conclusions first, unmet ones too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from card.sheets import file_name
from card.text import number, percent, table, wrapped

Numbers = Mapping[str, Any]
REMARKS = "remarks.json"
#: Pairs that touch of which shares of touching parts mean something.
FEW = 10


class Check(NamedTuple):
    """One thing that was wanted."""

    what: str
    found: str
    wanted: str
    met: bool


def checks(n: Numbers) -> list[Check]:
    """What was wanted of the corpus, and what it is."""
    pairs = n["splits"].get("train", 0)
    out = [Check("training pairs", f"{pairs:,}", "at least 100,000", pairs >= 100_000)]
    rarest = min(n["kinds"].values(), key=lambda row: row["share"])
    kinds = f"{len(n['kinds'])}, the rarest {percent(rarest['share'], 1)}"
    out.append(Check("kinds of interaction; share of the rarest", kinds, "at least 20", len(n["kinds"]) >= 20))
    touch = n["touching"]
    if touch["measured"]:
        deep = touch["depth mm"]
        out.append(
            Check(
                "deepest vertex of touching pairs: mean, 99 %, largest",
                f"{deep['mean']:.2f}, {deep['99 %']:.2f}, {deep['largest']:.2f} mm",
                "99 % at most 2 mm (skin gives that much)",
                deep["99 %"] <= 2,
            )
        )
    fingers, moments = n["fingers"], n["relative pose"]
    out.append(
        Check("finger marginals: mean absolute z of real fits under ours", f"{fingers['coverage']:.2f}", "below 1",
              fingers["coverage"] < 1)
    )  # fmt: skip
    place = max(map(abs, moments["place offset mm"]))
    out.append(Check("mean of the partner's place, largest offset", f"{place:.1f} mm", "at most 10 mm", place <= 10))
    ratio = moments["variance ratio"]
    out.append(
        Check("variances of the relative pose, ratio to the published", f"{min(ratio):.2f} to {max(ratio):.2f}",
              ".8 to 1.25", min(ratio) >= 0.8 and max(ratio) <= 1.25)
    )  # fmt: skip
    twice, shared = n["repeated pairs"]["repeated"], n["repeated hands"]["in two splits"]
    what = "pairs that occur twice; hands that are in two splits"
    out.append(Check(what, f"{twice}; {shared}", "0; 0", twice == shared == 0))
    near = n["neighbours"] or {}
    if "train" in near and "test" in near:
        found, own = near["test"]["mm"]["50%"], near["train"]["mm"]["50%"]
        out.append(
            Check("nearest training pair of a test pair, of a training pair (medians)", f"{found:.1f}, {own:.1f} mm",
                  "alike within a tenth", abs(found / own - 1) <= 0.1)
        )  # fmt: skip
    arms = n["surfaces"]["arms have room"]
    out.append(Check("pairs whose forearms have room", percent(arms, 2), "all", arms == 1))
    return out


def readme(result: Numbers, folder: Path) -> str:
    """The card as Markdown.

    Args:
        result: what `write_result` wrote.
        folder: where the card goes; its pictures and remarks are looked up there.
    """
    n = result["numbers"]
    remarks = _remarks(n, folder)
    head = _imported_head(n) if _imported(n) else [*_head(result), "", *_checks(n), *_weak(n)]
    name = n["corpus"]["dataset"] if _imported(n) else "the synthetic corpus"
    lines = [f"# Data card of {name}", "", *head]
    lines += ["", remarks.get("summary", ""), ""]
    for part in (_contents, _surfaces, _parts, _relative, _fingers, _neighbours, _diversity, _real):
        lines += [*part(n), ""]
    lines += _kinds(n, remarks, folder)
    lines += [f"Measured on {result['machine']['cpu']}, {result['date']}: `{result['command']}` (seed {n['seed']})."]
    return "\n".join(wrapped(lines)) + "\n"


def _imported(n: Numbers) -> bool:
    return n["corpus"].get("kind") == "import"


def _imported_head(n: Numbers) -> Iterator[str]:
    facts = n["corpus"]
    yield "Written by `python benchmarks/data_card.py SHARDS --hands MANO --out FOLDER`; every number is measured on"
    yield "the shards that `interhand-prior corpus import` wrote. They are the data set's: its licence holds for them."
    yield ""
    yield f"Convention: {facts['convention']}. Hands: {facts['hands']}."
    if "objects" in facts:
        yield f"Objects: {facts['objects']['note']}."
    left_out = facts.get("left_out", {})
    if left_out:
        yield "Left out: " + ", ".join(f"{count:,} x {reason}" for reason, count in left_out.items()) + "."
    again = n["repeated hands"]
    yield f"{percent(again['repeated'] / again['all'], 1)} of the hands have the very pose of one in another pair."
    yield ""
    known = n["kinds are"]
    yield (
        "The data set does not say what the hands do; "
        + (f"below, pairs are told apart by {known}." if known else "its pairs are not told apart.")
        + " Nothing is asked of it: the targets of the made corpus are not its own."
    )
    if facts.get("complete") is False:
        yield ""
        yield "**The import is not complete.**"


def _head(result: Numbers) -> Iterator[str]:
    n = result["numbers"]
    config = n["corpus"].get("config", {})
    yield "Written by `python benchmarks/data_card.py CORPUS --sheets`; every number is measured on the corpus's files."
    yield "The pairs are made on the bundled open hand (`interhand-prior corpus`); no recording of anybody is in them."
    if config:
        yield f"Configuration: {', '.join(f'{k} {_plain(v)}' for k, v in config.items() if v is not None)}."
    if n["corpus"].get("complete") is False:
        yield ""
        yield "**This corpus is not complete.**"


def _checks(n: Numbers) -> Iterator[str]:
    found = checks(n)
    missed = [c.what for c in found if not c.met]
    yield "## What was wanted, and what there is"
    yield ""
    yield f"{len(found) - len(missed)} of {len(found)} are met."
    if missed:
        yield f"**Not met: {'; '.join(missed)}.**"
    yield ""
    rows = [(c.what, c.found, c.wanted, "yes" if c.met else "**no**") for c in found]
    yield from table(("", "found", "wanted", "met"), rows)


def _weak(n: Numbers) -> Iterator[str]:
    """What no target names."""
    yield ""
    yield "Beside these:"
    real = n.get("real")
    if real:
        found, own = real["real"], real["test"]
        ratio = lambda key: f"{found[key]['50%'] / own[key]['50%']:.1f}"
        yield (
            f"real recordings are {ratio('pair mm')} times as far from the nearest training pair as test pairs are"
            f" (their hands alone {ratio('hand mm')} times);"
        )
    again = n["repeated hands"]
    yield f"{percent(again['repeated'] / again['all'], 1)} of the hands have the very pose of one in another pair;"
    yield f"{percent(1 - n['surfaces']['straight arms have room'], 1)} of the pairs need bent wrists."


def _contents(n: Numbers) -> Iterator[str]:
    yield "## Contents"
    yield ""
    splits, singles = n["splits"], n["single hands"]
    rows = []
    for split in {**splits, **singles}:
        alone = singles.get(split, {"samples": 0, "left": 0, "right": 0})
        sides = f"{alone['left']:,} / {alone['right']:,}"
        rows.append((split, f"{splits.get(split, 0):,}", f"{alone['samples']:,}", sides))
    yield from table(("split", "pairs", "hands alone", "left / right"), rows)
    made = n["generation"]
    if made["pairs"]:
        yield ""
        speed = f", {made['pairs per second']:.0f} a second" if made["pairs per second"] else ""
        kept = f"; {percent(made['overall'])} of the pairs tried were kept" if made["overall"] else ""
        yield f"The generator's last run made {made['pairs']:,} pairs{speed}{kept} (by kind: last tables)."
    betas, twist = n["betas"], n["twist"]
    yield ""
    yield (
        f"Betas have a standard deviation of {betas['sd']:.2f} (mean {betas['mean']:.2f}); the two hands of a pair"
        f" differ by {betas['sd of left minus right']:.2f}. Turns of phalanges about their own bones, which move no"
        f" joint and which fits leave open, have a deviation of {twist['sd_degrees']:.0f} degrees and make up"
        f" {percent(twist['share'])} of the variance of `hand_pose`."
    )


def _surfaces(n: Numbers) -> Iterator[str]:
    yield "## Penetration and nearness"
    yield ""
    yield (
        f"{n['surfaces']['measured']:,} pairs, evenly spaced over the {n['surfaces']['split']} split. Depth and volume"
        " are exact (`metrics.penetration_distance`, `penetration_volume`); gaps are between skins."
    )
    yield ""
    heads = ("", "pairs", "depth mm: mean", "99 %", "largest", "deeper than 2 mm", "volume cm^3: mean", "99 %",
             "largest", "within 3 mm", "2 cm", "10 cm", "arms straight", "arms bent")  # fmt: skip
    yield from table(heads, [("all", *_surface(n["surfaces"])), ("touching", *_surface(n["touching"]))])
    yield ""
    yield (
        '"Arms": whether forearms straight behind the wrists, or bent there as far as wrists bend, stay clear of the'
        " other hand and of each other, with elbows that one person can have."
    )
    noted = n["noted by the generator"]
    if noted:
        yield (
            f"The generator noted each pair's depth, otherwise computed: off by {noted['largest difference mm']:.2f} mm"
            f" at most, by more than .1 mm for {percent(noted['share off by 0.1 mm'], 1)}."
        )
        if noted["share off by 0.1 mm"] > 0.01:
            yield "**So the hands have changed since this corpus was made: make it anew.**"
    failed = n["surfaces"]["volume failed"]
    if failed:
        yield f"The volume of {failed} pairs could not be computed; they are left out of its columns."


def _surface(row: Numbers) -> tuple[str, ...]:
    depth, volume = row["depth mm"], row["volume cm3"]
    return (
        f"{row['measured']:,}",
        *(number(depth[k]) for k in ("mean", "99 %", "largest")),
        percent(row["share deeper than 2 mm"], 1),
        *(number(volume[k], 3) for k in ("mean", "99 %", "largest")),
        *(percent(row[f"share within {k}"]) for k in ("3 mm", "2 cm", "10 cm")),
        percent(row["straight arms have room"], 1),
        percent(row["arms have room"], 1),
    )


def _parts(n: Numbers) -> Iterator[str]:
    parts = n["touching parts"]
    yield "## Which parts touch"
    yield ""
    if not parts["pairs"]:
        yield "No measured pair touches."
        return
    yield f"Share, in percent, of {parts['pairs']:,} touching pairs in which these parts are within 3 mm of each other."
    yield ""
    heads = ("left \\ right", *parts["groups"])
    yield from table(
        heads,
        [(g, *(f"{100 * v:.0f}" for v in row)) for g, row in zip(parts["groups"], parts["left by right"], strict=True)],
    )
    yield ""
    yield "With which face a finger of either hand touches (a touch may take in several):"
    yield ""
    faces = ("pad", "tip", "side", "back")
    yield from table(("", *faces), [(f, *(percent(row[k]) for k in faces)) for f, row in parts["fingers"].items()])
    yield ""
    yield "The rest of the hand: " + ", ".join(f"{k} {percent(v)}" for k, v in parts["hand"].items()) + "."


_ENTRIES = ("R 11", "R 12", "R 13", "R 21", "R 22", "R 23", "x", "y", "z")


def _relative(n: Numbers) -> Iterator[str]:
    m = n["relative pose"]
    yield "## Relative pose"
    yield ""
    yield "First two rows of R_l^T R_r and the right middle MCP in the left hand's frame (m), beside InterHand2.6M's"
    yield "(published normaliser of the official code)."
    yield ""
    keys = ("mean", "published mean", "offset in published sd", "variance ratio")
    yield from table(("", *_ENTRIES), [(key, *(f"{v:.3f}" for v in m[key])) for key in keys])


def _fingers(n: Numbers) -> Iterator[str]:
    f = n["fingers"]
    yield "## Finger marginals"
    yield ""
    yield "Both hands in right-hand form, beside the rounded means and deviations of real MANO fits (of hands that"
    yield "hold objects)."
    yield ""
    rows = [
        ("mean absolute z of real fits under ours (alike: .80)", f"{f['coverage']:.3f}"),
        ("mean absolute z of ours under real fits", f"{f['abs_z']:.3f}"),
        ("offset of means, in real sd: mean, largest", f"{f['mean_offset']:.3f}, {f['mean_offset_max']:.3f}"),
        ("log ratio of deviations: mean, largest", f"{f['log_sd_ratio']:.3f}, {f['log_sd_ratio_max']:.3f}"),
    ]
    yield from table(("", ""), rows)
    yield ""
    listed = lambda values: ", ".join(f"{k} {v:.2f}" for k, v in values.items())
    yield f"Worst offsets (sd): {listed(f['worst offsets in sd'])}. Worst ratios: {listed(f['worst sd ratios'])}."
    alone = n["single hands"].get("train", {}).get("fingers")
    if alone:
        yield f"Hands alone (training split): {alone['coverage']:.3f}, offset of means {alone['mean_offset']:.3f}."


def _neighbours(n: Numbers) -> Iterator[str]:
    yield "## Nearest neighbours"
    yield ""
    if not n["neighbours"]:
        yield "There is no training split."
        return
    near = {k: v for k, v in n["neighbours"].items() if k != "bank"}
    yield (
        "Mean distance of both hands' 21 joints (mm, canonical frame) to the nearest training pair or mirror image of"
        f" one ({n['neighbours']['bank']:,} in all); a training pair itself and its own image do not count. A split"
        " that leaked would be nearer than training pairs are to each other."
    )
    yield ""
    keys = ("smallest", "1%", "10%", "50%", "90%", "99%")
    rows = [
        (split, row["queries"], *(number(row["mm"][k], 1) for k in keys), row["nearer than 1 mm"])
        for split, row in near.items()
    ]
    yield from table(("from", "pairs", *keys, "nearer than 1 mm"), rows)
    hands, twice = n["repeated hands"], n["repeated pairs"]["repeated"]
    yield ""
    yield (
        f"{twice} pairs repeat another bit for bit. Of {hands['all']:,} hands, {hands['repeated']:,} have the very pose"
        f" of a hand in another pair; {hands['in two splits']} poses are in two splits."
    )


def _diversity(n: Numbers) -> Iterator[str]:
    d = n["diversity"]
    yield "## Diversity"
    yield ""
    yield (
        f"Two pairs are {number(d['mean distance mm'], 0)} mm apart on average (mean joint distance). The canonical"
        f" vectors (55 + 64 entries) have an effective rank of {number(d['effective rank'], 0)}. Of {d['of']} pairs,"
        f" effectively {number(d['effective number'], 0)} differ by more than about 25 mm; by kind, below."
    )
    full = {name: row for name, row in n["kinds"].items() if row["of"] == d["of"]}
    least = sorted(full, key=lambda name: full[name]["effective number"])[:5]
    if least:
        yield "Least varied: " + ", ".join(f"{k} ({number(full[k]['effective number'], 0)})" for k in least) + "."


def _real(n: Numbers) -> Iterator[str]:
    real = n.get("real")
    if not real:
        return
    yield "## Real recordings"
    yield ""
    yield (
        f"{real['frames']} frames of {real['recordings']} recordings of a Leap tracker, fitted by the open hand without"
        f" a prior (residual {real['residual of the fit mm']:.2f} mm), and as many test pairs: distance to the nearest"
        " training pair (mm); of the placement alone, as an unposed hand in the partner's place; and of each hand"
        " alone, in its own frame, to the nearest of 20,000 training hands."
    )
    yield ""
    cell = lambda v: "" if v is None else f"{v['50%']:.1f}, {v['90%']:.1f}"
    found = ("pair mm", "pair mm, hands within 10 cm", "placement mm", "hand mm")
    rows = []
    for name in ("real", "test"):
        row = real[name]
        near = (percent(row[f"share within {k}"]) for k in ("2 cm", "10 cm"))
        rows.append((name, row["pairs"], number(row["gap mm, median"], 0), *near, *(cell(row.get(k)) for k in found)))
    heads = (
        "",
        "pairs",
        "gap mm",
        "within 2 cm",
        "10 cm",
        "pair: median, 90 %",
        "pairs within 10 cm",
        "placement",
        "hand alone",
    )
    yield from table(heads, rows)


def _kinds(n: Numbers, remarks: Mapping[str, str], folder: Path) -> Iterator[str]:
    called = n.get("kinds are") or "kind"
    yield f"## Every {called}"
    yield ""
    yield (
        "Depth, volume and touch are of as many pairs as are stated under measured. Effective number: of 200 pairs (or"
        " as many as there are), how many differ by more than about 25 mm. Parts per touch: how many of the 48 parts of"
        " both hands take part; where a hand should hold the other, few of them mean that it hardly does."
    )
    yield ""
    heads = (called, "pairs", "share", "accepted", "measured", "depth mm: mean", "largest", "volume cm^3",
             "within 3 mm", "parts per touch", "median gap mm", "arms bent", "pairs apart mm",
             "effective number")  # fmt: skip
    kinds = dict(sorted(n["kinds"].items(), key=lambda item: -item[1]["pairs"]))
    yield from table(heads, [(name, *_kind(row)) for name, row in kinds.items()])
    yield ""
    yield "## Pictures"
    yield ""
    split = n["surfaces"]["split"]
    yield f"Six samples of each {called}, evenly spaced over the {split} split, not picked; two views of each."
    yield "Left hand clay, right blue."
    yield ""
    for name, row in kinds.items():
        parts = ", ".join(f"{k} {percent(v)}" for k, v in row["touching parts"].items())
        often = row["share within 3 mm"] * row["measured"] >= FEW
        touch = f"{percent(row['share within 3 mm'])} touch; of these: {parts}" if often else "Hardly any touch"
        facts = f"{percent(row['share'], 1)} of pairs. {touch}."
        yield from _picture(name, file_name(name), facts, remarks, folder)
    alone: dict[str, int] = {}
    for split in n["single hands"].values():
        for name, count in split["kinds"].items():
            alone[name] = alone.get(name, 0) + count
    for name, count in sorted(alone.items()):
        title = f"{name} (a hand alone)"
        yield from _picture(title, f"single_{file_name(name)}", f"{count:,} samples.", remarks, folder)


def _kind(row: Numbers) -> tuple[str, ...]:
    number_of = number(row["effective number"], 0) + ("" if row["of"] == 200 else f" of {row['of']}")
    return (
        f"{row['pairs']:,}", percent(row["share"], 1), percent(row["acceptance"]), str(row["measured"]),
        number(row["depth mm"]["mean"]), number(row["depth mm"]["largest"]), number(row["volume cm3"]["mean"], 3),
        percent(row["share within 3 mm"]), number(row.get("parts per touch"), 1),
        number(row["gap mm"]["median"], 1), percent(row["arms have room"]),
        number(row["mean distance mm"], 0), number_of,
    )  # fmt: skip


def _picture(title: str, file: str, facts: str, remarks: Mapping[str, str], folder: Path) -> Iterator[str]:
    yield f"### {title}"
    yield ""
    yield facts + (f" *Seen:* {remarks[file]}" if file in remarks else "")
    yield ""
    if (folder / f"{file}.png").exists():
        yield f"![{title}]({file}.png)"
        yield ""


def _remarks(n: Numbers, folder: Path) -> Mapping[str, str]:
    """What somebody wrote about the pictures, if it was about this corpus."""
    path = folder / REMARKS
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["remarks"] if found["config"] == n["corpus"].get("config") else {}


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
