import ast
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
STAGES = (
    "graph",
    "model",
    "quantize",
    "hdl",
    "sim",
    "cli",
)  # in the order in which they may be imported

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
    expected = {".".join(("scotopia", *folder.parts)): str(folder) for folder in folders}
    setuptools = PROJECT["tool"]["setuptools"]
    assert set(setuptools["packages"]) == set(expected)
    assert setuptools["package-dir"] == expected
    assert {folder.parts[0] for folder in folders} == set(STAGES)


def test_package_data_patterns_name_files() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    for package, patterns in setuptools["package-data"].items():
        folder = ROOT / setuptools["package-dir"][package]
        for pattern in patterns:
            assert any(path.is_file() for path in folder.glob(pattern)), (package, pattern)


def test_every_data_file_is_packaged() -> None:
    # What is missing here works in an editable install and is missing from the wheel.
    setuptools = PROJECT["tool"]["setuptools"]
    packaged = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / setuptools["package-dir"][package]).glob(pattern)
    }
    for stage in STAGES:
        for path in (ROOT / stage).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in packaged, path.relative_to(ROOT)


def test_imports_point_forward_only() -> None:
    for module in MODULES:
        allowed = set(STAGES[: STAGES.index(module.parts[0]) + 1])
        assert stages_of(imports(module)) <= allowed, module


def test_hardware_does_not_know_the_float_rule() -> None:
    foreign = {"torch", "av", "scipy", "skimage"}
    light = {"files", "config", "sampling"}
    integer = {"integer_rule", "layered_rule"}
    for module in MODULES:
        if module.parts[0] not in ("hdl", "sim"):
            continue
        parts = [name.split(".") for name in imports(module)]
        assert foreign.isdisjoint(names[0] for names in parts), module
        for stage, allowed in (("model", light), ("quantize", integer)):
            known = {names[2] for names in parts if names[:2] == ["scotopia", stage] and names[2:]}
            assert known <= allowed, module


def test_imports_are_relative_in_a_stage_and_absolute_across() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= len(module.parent.parts), module
                own = f"scotopia.{module.parts[0]}."
                assert node.level or not f"{node.module}.".startswith(own), module


def test_every_dependency_has_its_reason_beside_it() -> None:
    project = PROJECT["project"]
    required = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        required += extra
    lines = [line.strip() for line in PYPROJECT.splitlines()]
    for requirement in required:
        here = [line for line in lines if line.startswith(f'"{requirement}"')]
        assert here and all(line.partition("#")[2].strip() for line in here), requirement


def test_constraints_pin_what_any_extra_installs() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pinned = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    project = PROJECT["project"]
    texts = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    known: set[str] = set()
    while texts:
        text = texts.pop()
        requirement = Requirement(text)
        extras = requirement.extras or {""}
        if text in known or requirement.name == "scotopia":  # whose extras are all in the list
            continue
        known.add(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned and requirement.specifier.contains(pinned[name]), text
        try:
            further = requires(name) or []
        except PackageNotFoundError:  # of an extra that is not installed here
            continue
        for one in further:
            marker = Requirement(one).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                texts.append(one)


def test_every_stage_is_typed() -> None:
    for stage in STAGES:
        assert (ROOT / stage / "py.typed").is_file()
