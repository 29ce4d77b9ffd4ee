"""Imports run downwards only, and the subpackages that must stay light do."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = [  # from the top down: a subpackage imports from the layers below its own
    ["train", "evaluate", "predict", "embed", "convert", "export", "plan", "__main__"],
    ["applications", "planning"],
    ["training"],
    ["tasks", "exchange"],
    ["evaluators"],
    ["weights"],
    ["models", "data"],
    ["config", "distributed", "output"],
]


def imported_packages(path: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "mae_jax":
            names = [f"mae_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        packages |= {name.split(".")[1] for name in names if name.startswith("mae_jax.")}
    return packages


def test_imports_run_downwards():
    level = {name: -depth for depth, packages in enumerate(LAYERS) for name in packages}
    package = ROOT / "mae_jax"
    wrong = []
    for path in package.rglob("*.py"):
        name = path.relative_to(package).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        assert name in level, f"say in LAYERS where {name} is"
        wrong += [
            f"{path.relative_to(package)} imports {other}, which is not below it"
            for other in imported_packages(path) - {name}
            if level[other] >= level[name]
        ]
    assert not wrong, "\n".join(wrong)


def test_the_top_layer_holds_only_commands():
    files = {path.stem for path in (ROOT / "mae_jax").glob("*.py")}
    assert files <= {*LAYERS[0], "__init__"}


def test_configs_are_plain_values():
    for path in (ROOT / "configs").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Import), path
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("configs", "configs.recipe_parts", "ml_collections"), path


def test_the_model_and_the_step_need_only_jax_flax_optax():
    """A GPU machine may have no more than these and pydantic: scripts/benchmark runs there."""
    code = (
        "import sys\n"
        "for name in ('grain', 'tensorflow_datasets', 'tensorboard',"
        " 'array_record', 'sklearn', 'skimage', 'matplotlib'): sys.modules[name] = None\n"
        "import mae_jax.training.step, mae_jax.tasks.pretrain, mae_jax.config.command_line\n"
        "import mae_jax.training.optimizer\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_data_workers_do_not_import_jax():
    code = (
        "import sys, mae_jax.data.sources, mae_jax.data.pipeline, mae_jax.data.prepare.writer\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
