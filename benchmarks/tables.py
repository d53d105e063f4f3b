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


def samples(result: Mapping[str, Any]) -> str:
    """Settings of sample_quality.py."""
    columns = ("penetration mm", "share deeper than 3 mm", "share touching (< 3 mm)", "share near (< 2 cm)")
    lines = [
        "| | " + " | ".join(columns) + " | Frechet | of as many real pairs | s per pair |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for name, row in result["numbers"].items():
        if not isinstance(row, dict) or columns[0] not in row:
            continue
        values = [f"{row[column]:.2f}" for column in columns]
        values += [_number(row.get("frechet")), _number(row.get("frechet of as many real pairs"))]
        lines.append(f"| {name} | " + " | ".join([*values, _number(row.get("seconds per pair"))]) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


TABLES = {"fit_keypoints": fits, "fit_keypoints_leap": fits, "sample_quality": samples}


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
