"""Imports go down only: server -> engine -> {models, kvcache} -> quant; models and kvcache never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "server": {"server", "engine", "models", "quant"},
    "engine": {"engine", "models", "kvcache", "quant"},
    "models": {"models", "quant"},
    "kvcache": {"kvcache", "quant"},
    "quant": {"quant"},
}
FILES = [path for floor in MAY_IMPORT for path in sorted((ROOT / floor).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    ours = {module.split(".")[0] for module in imported(path)} & (MAY_IMPORT.keys() | {"tests"})
    assert ours <= MAY_IMPORT[floor]


def reached(module: str, seen: set[str]) -> set[str]:
    """Every module that importing this one brings in, as far as our own folders go."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if module in seen or not path.exists():
        return seen | {module}
    seen = seen | {module}
    for name in imported(path):
        seen = reached(name, seen)
    return seen


@pytest.mark.parametrize("path", sorted((ROOT / "server").glob("*.py")), ids=lambda p: p.name)
def test_the_server_process_never_loads_mlx(path: Path) -> None:
    """The API process holds no weights; mlx and torch would only cost it memory."""
    brought = {module.split(".")[0] for module in reached(f"server.{path.stem}", set())}
    assert not brought & {"mlx", "torch", "transformers", "gguf"}


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_package_faces_are_empty(floor: str) -> None:
    faces = (ROOT / floor).rglob("__init__.py")
    assert [face for face in faces if face.read_text()] == []
