"""README keeps its word: CI runs its two commands, and its Python runs as it stands there."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
_spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
assert _spec and _spec.loader
readme = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme)


def test_ci_runs_the_two_commands_of_readme_to_the_letter():
    train, test = readme.commands()
    assert train in README.split("\n    ", 1)[1] and test in README
    assert "-m mae_jax.train --config=configs/quickstart.py" in train
    assert "-e '.[test]' " in test and test.endswith("-m pytest")
    stages = subprocess.run(
        ["bash", ".ci/run", "--list"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"quickstart:\n{train}\n\ntests:\n{test}\n\n" in stages


@pytest.mark.parametrize("commands", ["", "    one\n", "    one\n\n    two\n\n    three\n"])
def test_more_or_fewer_than_two_commands_are_an_error(commands, monkeypatch, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"# x\n\n## Two commands\n\n{commands}\n## What you will see\n\n    other\n")
    monkeypatch.setattr(readme, "README", file)
    with pytest.raises(SystemExit, match="should have two commands"):
        readme.commands()


def test_the_markers_that_ci_selects_have_tests():
    (selected,) = re.findall("pytest -m '(.+)'", (ROOT / ".ci" / "run").read_text())
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for marker in selected.split(" or "):
        assert f"pytest.mark.{marker}" in tests


def test_the_model_in_fifteen_lines_runs():
    code = readme.python().replace("depth=12", "depth=4")  # in a third of the time
    assert 5 < len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    out, images = names["out"], names["images"]
    assert out.prediction.shape[:2] == out.mask.masked.shape
    assert names["picture"].shape == images.shape
    assert names["tokens"].shape[:2] == (len(images), 1 + out.mask.n)


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 160
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    broken = [x for x in targets if not x.startswith("http") and not (ROOT / x).exists()]
    assert not broken


def test_pages_name_only_files_that_are_there():
    """Documentation that survives a move: `configs/x.py`, `scripts/x`, `mae_jax/x` exist."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages.remove(ROOT / "docs" / "reliability.md")  # it quotes messages about wrong names
    pattern = r"\b((?:mae_jax|scripts|configs|tests|benchmarks)/[\w/]+\.(?:py|sh|json))\b"
    missing = {
        f"{page.relative_to(ROOT)}: {path}"
        for page in pages
        for path in re.findall(pattern, page.read_text())
        if not (ROOT / path).exists()
    }
    assert not missing
