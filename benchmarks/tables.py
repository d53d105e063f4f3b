"""Put the tables of README.md in order with results/*.json: ``python benchmarks/tables.py``.

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; the words around it are written by hand, and want
another look when a table has changed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS
from do_no_harm import table as do_no_harm
from reconstruction import table as reconstruction
from refine import table as refine
from score import table as score

README = Path(__file__).resolve().parent / "README.md"


def fits(result: Mapping[str, Any]) -> str:
    """Cases and arms of fit_keypoints.py."""
    lines = [
        "| case | regulariser | MPJPE | MRRPE | penetration | MPJPE worse by > 1 / 5 mm | MRRPE worse by > 1 / 5 mm |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, arms in result["numbers"]["cases"].items():
        for arm, row in arms.items():
            if arm == "start":
                continue
            worse = [
                " / ".join(f"{row[f'share {error} worse by > {limit} mm']:.0%}" for limit in (1, 5))
                if f"share {error} worse by > 1 mm" in row
                else ""
                for error in ("MPJPE", "MRRPE")
            ]
            values = [f"{row[key]:.2f}" for key in ("MPJPE", "MRRPE", "penetration")]
            lines.append(f"| {case} | {arm} | {' | '.join(values + worse)} |")
            case = ""
    return "\n".join(lines)


#: Key in the results, heading, factor and digits.
_FHID = ("fhid", "FHID", 1, 2)
_KHID = ("khid", "KHID x 10^-2", 100, 2)
_DIVERSITY = ("diversity", "diversity", 1, 2)
_PRECISION, _RECALL = ("precision", "precision", 1, 2), ("recall", "recall", 1, 2)
_PEN_VOL, _PEN_DIST = ("penetration_volume", "PenVol cm^3", 1, 2), ("penetration_distance", "PenDist cm", 1, 3)
_PROX_RATIO, _TOUCH = ("proximity_ratio", "ProxRatio", 1, 2), ("touch_share", "touch", 1, 2)

#: The paper's tables: title, columns, rows (None: all that are left).
PAPER_TABLES = (
    (
        "Table 1a: two-hand interaction synthesis",
        (_FHID, _KHID, _DIVERSITY, _PRECISION, _RECALL, _PEN_VOL),
        (
            *("VAE", "BUDDI*", "Ours w/o Decomposition", "Ours w/o Shared Network", "Ours", "Ours w/o APG"),
            "Ours with BUDDI*'s backbone",
        ),
    ),
    (
        "Table 3a: self-attention and classifier-free guidance",
        (_FHID, _PRECISION, _DIVERSITY, _RECALL),
        ("Ours w/o SelfAtt", "Ours w/o CFG", "Ours"),
    ),
    (
        "Table 3b: anti-penetration guidance",
        (_PEN_VOL, _PEN_DIST, _PROX_RATIO, _TOUCH),
        ("Ours w/o APG", "Ours"),
    ),
)


def paper_tables(result: Mapping[str, Any]) -> str:
    """Tables 1a, 3a and 3b: our numbers, and to the right the paper's on InterHand2.6M."""
    numbers = result["numbers"]
    rows, paper = numbers["rows"], numbers["paper (InterHand2.6M)"]
    beside = [name for name in rows if not any(name in names for _, _, names in PAPER_TABLES)]
    blocks = []
    for title, columns, names in PAPER_TABLES:
        shown = [name for name in names if name in rows]
        theirs = [column for column in columns if any(column[0] in paper.get(name, {}) for name in shown)]
        heads = [head for _, head, _, _ in columns] + [f"paper: {head}" for _, head, _, _ in theirs]
        lines = [f"**{title}**", "", "| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name in [*shown, *beside]:
            cells = [_spread(rows[name].get(key), factor, digits) for key, _, factor, digits in columns]
            for key, _, factor, digits in theirs:
                value = paper.get(name, {}).get(key)
                cells.append("" if value is None else f"{factor * value:.{digits}f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def bundled_prior(result: Mapping[str, Any]) -> str:
    """Rows of bundled_prior.py."""
    columns = (_FHID, _KHID, _DIVERSITY, _PRECISION, _RECALL, _PEN_VOL, _PEN_DIST, _PROX_RATIO, _TOUCH)
    lines = [
        "| | " + " | ".join(head for _, head, _, _ in columns) + " | ms a pair |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for name, row in result["numbers"]["rows"].items():
        cells = [_spread(row.get(key), factor, digits) for key, _, factor, digits in columns]
        lines.append(f"| {name} | " + " | ".join([*cells, _number(row.get("ms per pair"), 0)]) + " |")
    return "\n".join(lines)


def solvers(result: Mapping[str, Any]) -> str:
    """Rows of solvers.py."""
    keys = ("variance_ratio", "variance_ratio_relative_pose", "frechet")
    lines = ["| solver | steps | variance ratio | of the relative pose | Frechet | s |", "|---|---|---|---|---|---|"]
    rows = [*result["numbers"]["rows"], {"solver": "as many real pairs", **result["numbers"]["floor"]}]
    for row in rows:
        cells = [_number(row.get(key)) for key in keys]
        lines.append(
            f"| {row['solver']} | {row.get('steps', '')} | {' | '.join(cells)} | {_number(row.get('seconds'), 0)} |"
        )
    return "\n".join(lines)


def training(result: Mapping[str, Any]) -> str:
    """Step, loader and processes of training.py."""
    n = result["numbers"]
    lines = [
        f"| network, batches of {n['batch']}, one thread | parameters | samples a second | GFLOP a step | share of the"
        " matrix-product peak | optimiser |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in n["step"].items():
        cells = [
            f"{row['parameters'] / 1e6:.1f} M",
            _number(row["samples_per_second"], 0),
            _number(row["gflop_per_step"], 1),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['share_of_peak']:.0%} | {row['optimizer_ms']:.1f} ms |")
    load, gain = n["loader"], n["processes"]["gain"]
    lines += [
        "",
        f"Reading from {load['samples']:,} samples{' in memory-mapped shards' if load['mapped'] else ''}:"
        f" {load['fetched_samples_per_second']:,.0f} a second; a step takes {load['ratio']:.2f} times what it takes on"
        " one batch over and over. Samples a second of all processes together, beside one with one thread: "
        + ", ".join(f"{name} {value:.2f}" for name, value in gain.items() if value != 1)
        + ".",
    ]
    return "\n".join(lines)


def recipe_study(result: Mapping[str, Any]) -> str:
    """Variants of recipe_study.py."""
    losses = ("val_cond", "val_uncond", "val_alone")
    metrics = (_FHID, _KHID, _PRECISION, _RECALL)
    heads = ["parameters", "loss with anchor", "without", "alone", *(m[1] for m in metrics)]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, row in result["numbers"]["variants"].items():
        cells = [f"{row['parameters'] / 1e6:.2f} M", *(_number(row.get(key), 3) for key in losses)]
        cells += [_spread(row.get(key), factor, digits) for key, _, factor, digits in metrics]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loss_cost(result: Mapping[str, Any]) -> str:
    """Rows of loss_cost.py."""
    n = result["numbers"]
    lines = [f"| {n['settings']['batch']} pairs, forward and backward | ms | share of the step |", "|---|---|---|"]
    for name, row in n["rows"].items():
        lines.append(f"| {name} | {row['ms']:.0f} | {row['share of the step']:.1%} |")
    return "\n".join(lines)


def _spread(cell: Mapping[str, float] | None, factor: float, digits: int) -> str:
    if cell is None or cell["mean"] is None:
        return ""
    mean = f"{factor * cell['mean']:.{digits}f}"
    return mean if cell["std"] is None else f"{mean} ± {factor * cell['std']:.{digits}f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


TABLES = {
    "fit_keypoints": fits,
    "fit_keypoints_leap": fits,
    "bundled_prior": bundled_prior,
    "solvers": solvers,
    "training": training,
    "recipe_study": recipe_study,
    "paper_tables": paper_tables,
    "score": score,
    "refine": refine,
    "do_no_harm": do_no_harm,
    "reconstruction": reconstruction,
    "loss_cost": loss_cost,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the tables whose results are there."""
    text = README.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            print(f"no results/{path.name}: its table stays as it is")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        source = f"{result['machine']['cpu']}, {result['date']}: `{result['command']}`"
        block = f"<!-- {name} -->\n{table(result)}\n\n{source}\n<!-- /{name} -->"
        pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        if not pattern.search(text):
            sys.exit(f"README.md has no <!-- {name} --> ... <!-- /{name} -->")
        text = pattern.sub(block.replace("\\", r"\\"), text)  # a replacement reads backslashes
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
