"""What loads what. The core imports only what stands before it in the way of the data; the rest imports the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "interhand_prior"

#: The way of the data: a module may import those before it. Modules of one group may import each other.
CORE = [
    ["_version", "files", "progress", "pickles"],
    ["rotations"],
    ["params"],
    ["pair_files", "checked"],
    ["hands"],
    ["canonical"],
    ["objects"],
    ["schedule"],
    ["denoiser", "point_sets", "pointnet2"],
    ["token_denoiser", "official"],
    ["networks"],
    ["geometry", "guidance"],
    ["checkpoint", "card"],
    ["sampling", "official_sampling", "sds", "repair", "plausibility"],
    ["calibrating", "prior_files"],
    ["prior"],
    ["hub"],
]
#: These import the core, and never each other.
AROUND = ["convert", "data", "train", "baselines", "metrics", "viewer"]
#: But whoever trains something does so with the one engine, and data sets' conventions are converted in one place.
ALSO = {"baselines": {"train"}, "metrics": {"train"}, "data": {"convert"}}
#: Methods that only hand over (`hands.render`, `prior.push_to_hub`) import what stands after them when they are called.
HANDED_OVER = {"params": {"hands", "pair_files", "viewer"}, "prior": {"hub"}}
#: May import everything.
WIRING = ["cli", "doctor", "__main__", "__init__"]

#: Of no use to somebody who only wants the loss.
HEAVY = {"smplx", "huggingface_hub", "scipy", "skimage", "tqdm", "diffusers", "chumpy"}
HEAVY |= {"trimesh", "pyvista", "vtk", "PIL", "matplotlib"}


@pytest.fixture(scope="module")
def added() -> list[set[str]]:
    """Modules that come with `import interhand_prior`, and then with the viewer and the command line."""
    steps = ["import torch, numpy, safetensors.torch", "import interhand_prior"]
    steps.append("import interhand_prior.viewer, interhand_prior.cli")
    code = "import sys\n" + "\n".join(f"{step}\nprint(*sys.modules)" for step in steps)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch, bare, more = (set(line.split()) for line in run.stdout.splitlines())
    return [bare - torch, more - bare]


def test_bare_import_is_light(added: list[set[str]]) -> None:
    assert "interhand_prior.sds" in added[0]
    assert not {name for name in added[0] if name.partition(".")[0] in HEAVY}
    assert not {name for name in added[0] if name.split(".")[1:2] and name.split(".")[1] in [*AROUND, "cli"]}


def test_the_viewer_and_the_command_line_need_no_library(added: list[set[str]]) -> None:
    assert "interhand_prior.viewer.sheet" in added[1]
    assert not {name for name in added[1] if name.partition(".")[0] in HEAVY}


def test_public_names() -> None:
    import interhand_prior

    expected = {"load_prior", "sample", "sds_loss", "TwoHandPrior", "TwoHands", "HandParams", "__version__"}
    assert set(interhand_prior.__all__) == expected
    assert all(hasattr(interhand_prior, name) for name in expected)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def unit_of(path: Path) -> str:
    """The module or subpackage directly below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, inside_functions: bool) -> set[str]:
    """Units of the package that a file imports when it is loaded, or inside its functions; none of TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
    inner_nodes = {id(inner) for function in functions for inner in ast.walk(function)}
    package = ["interhand_prior", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only or (id(node) in inner_nodes) != inside_functions:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` names a module, or something in the package's own __init__.
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "interhand_prior" else [stem]
        for name in names:
            parts = name.split(".")
            if parts[0] == "interhand_prior" and len(parts) > 1:
                known = (PACKAGE / f"{parts[1]}.py").exists() or (PACKAGE / parts[1]).is_dir()
                found.add(parts[1] if known else "__init__")
    return found - {unit_of(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rules(path: Path) -> None:
    unit = unit_of(path)
    used, handed_over = (imports_of(path, inside_functions=inside) for inside in (False, True))
    rank = {name: i for i, group in enumerate(CORE) for name in group}
    assert unit in rank or unit in AROUND or unit in WIRING, f"{unit} has no place in the way of the data; give it one"
    if unit in WIRING:
        return
    if unit in AROUND:
        allowed = set(rank) | ALSO.get(unit, set())
        # A command may wire others in when it is asked to (`--fhid`), never by being imported.
        late = set() if path.name == "__main__.py" else handed_over
        assert used | late <= allowed, (
            f"{unit} may import {' and '.join(('the core', *sorted(ALSO.get(unit, ()))))} only"
        )
        return
    late = {name for name in used | handed_over if rank.get(name, len(CORE)) > rank[unit]}
    assert not late & used, f"{unit} imports what stands after it: {sorted(late & used)}"
    assert late <= HANDED_OVER.get(unit, set()), f"{unit} imports what stands after it in a function: {sorted(late)}"


@pytest.mark.parametrize(
    ("name", "text", "outside", "inside"),
    [
        ("sds.py", "from .prior import TwoHandPrior", {"prior"}, set()),
        ("sds.py", "import interhand_prior.hub as h", {"hub"}, set()),
        ("sds.py", "from . import hub, sds", {"hub"}, set()),
        ("sds.py", "def f():\n    from .viewer.sheet import tile", set(), {"viewer"}),
        ("train/loop.py", "from ..data import synthetic\nfrom .config import C\nimport torch", {"data"}, set()),
        ("sds.py", "if TYPE_CHECKING:\n    from .prior import TwoHandPrior", set(), set()),
    ],
)
def test_the_reader_of_imports_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, outside: set[str], inside: set[str]
) -> None:
    for module in ("prior.py", "hub.py", "sds.py", "viewer/x.py", "data/x.py", "train/loop.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).touch()
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / name).write_text(text)
    assert imports_of(tmp_path / name, inside_functions=False) == outside
    assert imports_of(tmp_path / name, inside_functions=True) == inside
