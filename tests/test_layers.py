"""Dependencies point down only: the import graph of the package, read from its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "isocenter"

#: From bottom to top. Modules of one rank may import each other, but no model imports the runtime.
RANKS = [
    {"core"},
    {"io", "store"},
    {"models", "runtime"},
    {"analysis", "jobs"},
    {"answers", "scans", "service", "textservice", "trackservice", "followup", "narrateservice"},
    {"jobservice", "patients"},
    {"listenservice"},
    {"http", "cli", "demo", "api", "__main__"},
]
#: Libraries that only some layers may import, anywhere in a file.
RESERVED = {"torch": {"models", "runtime"}, "onnxruntime": {"models", "runtime"}, "fastapi": {"http"}, "starlette": {"http"}, "pydicom": {"io"}}
#: Libraries too heavy for the top of a module outside the layer that owns them.
LAZY = {"torch", "onnxruntime", "SimpleITK", "highdicom", "skimage", "numba"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        yield (relative.parts[0] if len(relative.parts) > 1 else relative.stem), path


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            module = node.module or ""
            yield module, node.lineno
            if module == "isocenter":
                yield from ((f"isocenter.{alias.name}", node.lineno) for alias in node.names)


def rank(layer: str) -> int:
    return next((i for i, layers in enumerate(RANKS) if layer in layers), len(RANKS))


@pytest.mark.parametrize(("layer", "path"), [pytest.param(layer, path, id=str(path.relative_to(PACKAGE))) for layer, path in modules()])
def test_dependencies_point_down(layer: str, path: Path) -> None:
    wrong = []
    for name, line in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "isocenter" and len(parts) > 1 and layer != "__init__":
            target = parts[1]
            if target == "__init__" or rank(target) == len(RANKS):
                continue
            if rank(target) > rank(layer) or (layer == "models" and target == "runtime"):
                wrong.append(f"{path.name}:{line} imports {name}")
        if parts[0] in RESERVED and layer not in RESERVED[parts[0]]:
            wrong.append(f"{path.name}:{line} imports {name}, which only {sorted(RESERVED[parts[0]])} may")
    assert not wrong, wrong


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(PACKAGE))) for _, path in modules()])
def test_heavy_libraries_are_imported_in_functions(path: Path) -> None:
    if (path.name.startswith("_") and path.name != "__init__.py") or path.parent.name.startswith("_"):
        return  # private kernel modules are themselves imported inside functions
    tree = ast.parse(path.read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {name for name, _ in imports(top) if name.split(".")[0] in LAZY}


def test_the_test_sees_arrows() -> None:
    """The checks above would pass on an empty folder; make sure that they look at something."""
    layers = {layer for layer, _ in modules()}
    assert {"core", "io", "models"} <= layers


def test_listing_models_stays_light() -> None:
    """`import isocenter` costs next to nothing, and knowing the models needs none of the libraries that run them."""
    code = "import sys, isocenter; from isocenter.models import registry; registry.specs(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {*LAZY, "scipy", "pydicom", "nibabel", "PIL", "pydantic"}
    alone = subprocess.run([sys.executable, "-c", "import sys, isocenter; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert "numpy" not in alone.stdout.split()
