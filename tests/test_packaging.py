import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
STAGES = ("model", "quantize", "hdl", "sim", "cli")  # in the order in which they may be imported

PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT)
MODULES = [
    path.relative_to(ROOT) for stage in STAGES for path in sorted((ROOT / stage).rglob("*.py"))
]


def imports(module: Path) -> set[str]:
    """Full names of all that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ["scotopia", *module.parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    return found


def stages_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("scotopia.")}


def test_declared_packages_are_the_folders() -> None:
    folders = {module.parent for module in MODULES}
    expected = {"scotopia." + ".".join(folder.parts): str(folder) for folder in folders}
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == set(expected)
    assert setuptools["package-dir"] == expected
    assert {str(folder) for folder in folders} == set(STAGES)


@pytest.mark.parametrize(
    ("package", "pattern"),
    [
        (package, pattern)
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
    ],
)
def test_package_data_patterns_name_files(package: str, pattern: str) -> None:
    folder = ROOT / PROJECT["tool"]["setuptools"]["package-dir"][package]
    assert [path for path in folder.glob(pattern) if path.is_file()]


def test_every_data_file_is_packaged() -> None:
    # What is missing here works in an editable install and is missing from the wheel.
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for stage in STAGES:
        folder = ROOT / stage
        packaged = {path for pattern in data[f"scotopia.{stage}"] for path in folder.glob(pattern)}
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in packaged, path.relative_to(ROOT)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_point_forward_only(module: Path) -> None:
    stage = module.parts[0]
    allowed = set(STAGES[: STAGES.index(stage) + 1])
    assert stages_of(imports(module)) <= allowed


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] in ("hdl", "sim")], ids=str)
def test_hardware_does_not_know_the_float_rule(module: Path) -> None:
    names = imports(module)
    assert not {name for name in names if name.split(".")[0] in ("torch", "av", "scipy", "skimage")}
    light = {"errors", "files", "config", "sampling"}
    from_model = {name.split(".")[2] for name in names if name.startswith("scotopia.model.")}
    assert from_model <= light
    integer = {"integer_rule", "lfsr", "qformat", "ranges"}
    from_quantize = {name.split(".")[2] for name in names if name.startswith("scotopia.quantize.")}
    assert from_quantize <= integer


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_are_relative_in_a_stage_and_absolute_across(module: Path) -> None:
    tree = ast.parse((ROOT / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            if node.level == 0:
                assert not f"{node.module}.".startswith(f"scotopia.{module.parts[0]}.")


def test_every_dependency_has_its_reason_beside_it() -> None:
    project = PROJECT["project"]
    required = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    lines = [line.strip() for line in PYPROJECT.splitlines()]
    for requirement in required:
        here = [line for line in lines if line.startswith(f'"{requirement}"')]
        assert here and all(line.partition("#")[2].strip() for line in here), requirement


def test_every_stage_is_typed() -> None:
    for stage in STAGES:
        assert (ROOT / stage / "py.typed").is_file()
