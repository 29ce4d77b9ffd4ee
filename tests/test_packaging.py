"""A wheel holds all that training needs, and the command `mae_jax` runs every command."""

import ast
import importlib.util
import os
import runpy
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mae_jax import __main__ as command
from mae_jax.config import find

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path, path: Path = ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds what an installed wheel holds."""
    pytest.importorskip("hatchling")
    built, site = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    result = run("-m", "hatchling", "build", "-t", "wheel", "-d", str(built), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_an_installed_wheel_trains_from_any_folder(installed, tmp_path):
    result = run(
        *("-m", "mae_jax", "train", "--config=quickstart:debug", "--workdir=run"),
        *(f"--noconfig.evaluators.{name}" for name in ("knn", "linear")),
        cwd=tmp_path,
        path=installed,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.txt").read_text()
    where = run("-c", "import mae_jax; print(mae_jax.__file__)", cwd=tmp_path, path=installed)
    assert where.stdout.startswith(str(installed))  # what ran was the wheel, not this folder


def test_a_wheel_holds_every_config_the_marker_of_types_and_the_command(installed):
    shipped = {path.name for path in (installed / "mae_jax/shipped/configs").glob("*.py")}
    assert shipped == {path.name for path in (ROOT / "configs").glob("*.py")}
    assert (installed / "mae_jax/py.typed").is_file()
    (metadata,) = installed.glob("*.dist-info")
    assert "mae_jax = mae_jax.__main__:main" in (metadata / "entry_points.txt").read_text()
    top = {path.name for path in installed.iterdir()} - {metadata.name}
    assert top == {"mae_jax"}  # and nothing else that could hide a user's modules


def test_configs_are_found_by_path_and_then_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = ROOT / "configs" / "vit_base.py"
    for name in ("vit_base", "vit_base.py", "configs/vit_base.py"):
        assert find.find_config(name) == shipped
    (tmp_path / "vit_base.py").write_text("")
    assert find.find_config("vit_base.py") == Path("vit_base.py")  # the user's own comes first
    for name in ("vit_bass", "mine/vit_base.py", "vit_base.json"):
        with pytest.raises(ValueError, match=f"'{name}' does not exist: did you mean vit_base"):
            find.find_config(name)
    with pytest.raises(
        ValueError, match="'x' does not exist; the configs are: .*vit_large"
    ) as raised:
        find.find_config("x")
    assert "recipe_parts" not in str(raised.value)  # which is no config


def test_each_command_runs_its_module_with_the_other_arguments(monkeypatch):
    ran = []
    monkeypatch.setattr(runpy, "run_module", lambda name, **_: ran.append((name, sys.argv[1:])))
    for name in command.COMMANDS:
        short = name.removeprefix("applications.")
        monkeypatch.setattr(sys, "argv", ["mae_jax", short, "--help"])
        command.main()
    assert ran == [(f"mae_jax.{name}", ["--help"]) for name in command.COMMANDS]
    assert all(importlib.util.find_spec(name) for name, _ in ran)


def test_an_unknown_command_ends_with_those_that_there_are(tmp_path):
    result = run("-m", "mae_jax", "trian", cwd=tmp_path)
    assert result.returncode == 2
    assert "no command 'trian'" in result.stderr and "  train" in result.stderr
    assert run("-m", "mae_jax", cwd=tmp_path).returncode == 0


def requirements(names) -> set[str]:
    """The normalised names of requirements and of all that they require in turn."""
    found, left = set(), [Requirement(name) for name in names]
    while left:
        requirement = left.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or name == "mae-jax":
            continue
        found.add(name)
        extras = requirement.extras or {""}
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # declared, but not installed here
            continue
        for text in needed:
            wanted = Requirement(text)
            marker = wanted.marker
            if not marker or any(marker.evaluate({"extra": extra}) for extra in extras):
                left.append(wanted)
    return found


def imported(folder: Path) -> dict[str, Path]:
    """The modules that files import when they are imported themselves, each with a file."""
    names = {}
    for path in folder.rglob("*.py"):
        if path.name == "make_golden.py":  # a script beside the tests, which needs torch
            continue
        for node in ast.parse(path.read_text()).body:  # not what functions import
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names[node.module.partition(".")[0]] = path
    return names


def test_what_is_imported_is_declared():
    """A fresh environment has what README's two commands import, and this one may have more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = next(text for text in extras["test"] if text.startswith("mae_jax["))
    names = own.removeprefix("mae_jax[").removesuffix("]").split(",")
    test = [*extras["test"], *(text for name in names for text in extras[name])]
    owners, ours = metadata.packages_distributions(), {"mae_jax", "scripts", "tests", "configs"}
    ours |= {path.stem for path in (ROOT / "tests").rglob("*.py")}  # helpers beside the tests
    undeclared = set()
    for folder, more in (("mae_jax", []), ("tests", test)):
        declared = requirements([*project["dependencies"], *more])
        for name, path in imported(ROOT / folder).items():
            if name in sys.stdlib_module_names or name in ours:
                continue
            providers = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
            if not providers & declared:
                undeclared.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not undeclared


def test_what_functions_import_is_declared_by_name():
    """A package that comes with another one may stop to come."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    declared = {Requirement(text).name.lower().replace("_", "-") for text in texts}
    of_others = {"jaxlib", "libtpu", "ml_dtypes", "annotated_types"}  # parts of jax and pydantic
    owners, undeclared = metadata.packages_distributions(), set()
    for path in (ROOT / "mae_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            for name in {module.partition(".")[0] for module in modules}:
                providers = {owner.lower().replace("_", "-") for owner in owners.get(name, [name])}
                known = name in sys.stdlib_module_names or name in {"mae_jax", *of_others}
                if not known and not providers & declared:
                    undeclared.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not undeclared
