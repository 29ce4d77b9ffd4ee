"""The card of a model: README.md with the recipe, the data, the curve and the figures of its run.

Paths of the machine do not get into a card: of a source of data or of a checkpoint it has the name.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

import mae_jax
from mae_jax.models import build
from mae_jax.output import files
from mae_jax.weights.checkpoint_info import CheckpointInfo

ROWS = 8  # of the table of losses
LICENSE = (
    "The code of mae_jax is Apache-2.0, which says nothing about weights. Their license depends on "
    "the data and on the checkpoint that they come from. The published weights of MAE are CC BY-NC "
    "4.0, those of other masked autoencoders are often non-commercial too, and weights that are "
    "converted or trained further from them stay so."
)
MAE_JAX = """\
```python
import mae_jax

model, params = mae_jax.load("{place}")
{call}
```"""
ENCODE = (
    'tokens, _ = model.apply({"params": params}, inputs, method="encode")  # [b, tokens, width]'
)
CLASSIFY = 'logits = model.apply({"params": params}, inputs)  # [b, classes]'
REGRESS = 'numbers = model.apply({"params": params}, inputs)  # [b, targets], in their own units'
TRANSFORMERS = """\
```python
from transformers import {kind}

model = {kind}.from_pretrained("{name}")
```"""
TIMM = """\
```python
import timm

model = timm.create_model("{name}", pretrained=True)
```"""


class Run(NamedTuple):
    """What a work directory says of the training up to a step."""

    folder: epath.Path
    step: int
    config: Mapping[str, Any]
    records: list[dict[str, Any]]  # of metrics.jsonl, up to the step
    is_last: bool  # no record is of a later step


def write(folder: Path, info: CheckpointInfo, place: str, license: str = "") -> None:
    """Write README.md into `folder`, and the picture of the curve if there is one.

    Args:
      folder: holds the weights, under the names of any format.
      info: the checkpoint that they are from.
      place: what the reader gives to `mae_jax.load`, such as hf:ORG/NAME.
      license: an identifier of the Hub, such as cc-by-nc-4.0.
    """
    run, (library, reader) = _read_run(info), _reader(folder, place)
    metadata = {"library_name": library} | ({"license": license} if license else {})
    metadata |= {"tags": ["masked-autoencoder", "jax"]}
    front = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
    call = CLASSIFY if info.fields.get("classes") else ENCODE
    call = REGRESS if info.targets else call
    parts = {
        "": "\n".join(["---", *front, "---"]),
        f"# {place.rpartition('/')[2]}": _summary(info),
        "## License": LICENSE,
        "## Use": f"{MAE_JAX.format(place=place, call=call)}\n\n{reader}".strip(),
        "## Inputs": _inputs(info),
    }
    if run:
        parts |= {
            "## Training": _table(_recipe(run)),
            "## Loss": _curve(run, folder),
            "## Evaluation": _evaluation(run),
        }
    text = "\n\n".join(f"{title}\n\n{part}".strip() for title, part in parts.items() if part)
    (folder / "README.md").write_text(text + "\n")


def _reader(folder: Path, place: str) -> tuple[str, str]:
    """Return the library whose format a folder has, and the code with which it reads the folder."""
    file, name = epath.Path(folder) / "config.json", place.removeprefix("hf:").partition("@")[0]
    settings = files.read_json(file) if file.exists() else {}
    if kinds := settings.get("architectures"):
        return "transformers", TRANSFORMERS.format(kind=kinds[0], name=name)
    if "architecture" in settings:
        return "timm", TIMM.format(name=f"{'hf-hub' if name != place else 'local-dir'}:{name}")
    return "mae_jax", ""


def _read_run(info: CheckpointInfo) -> Run | None:
    """Return the run of a checkpoint of a work directory, None for other checkpoints."""
    match, config = re.fullmatch(r"(.+):(\d+)", info.path), info.config or {}
    if not match or "optimizer" not in config:
        return None
    folder, step = epath.Path(match[1]), int(match[2])
    file, records = folder / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
            records += [record] if "event" not in record else []
        except ValueError:  # a line that was cut when its process died
            continue
    until = [record for record in records if record["step"] <= step]
    return Run(folder, step, config, until, len(until) == len(records))


def _summary(info: CheckpointInfo) -> str:
    fields = build.completed(info.kind, info.fields)
    count = sum(math.prod(shape) for shape in info.shapes.values())
    classes = fields.get("classes")
    kind = (
        f"A classifier of {classes} classes" if classes else "The encoder of a masked autoencoder"
    )
    if info.targets:
        kind = f"A regressor of {', '.join(info.targets.names)}"
    decoder = ""
    if info.kind == "MaskedAutoencoder":
        kind = "A masked autoencoder ([He et al. 2021](https://arxiv.org/abs/2111.06377))"
        width, depth = (fields[f"decoder_{name}"] for name in ("width", "depth"))
        decoder = f", and a decoder of width {width} and depth {depth}"
    return (
        f"{kind} with {count / 1e6:.1f} M parameters: a ViT of width {fields['width']}, depth "
        f"{fields['depth']} and {fields['heads']} heads on patches of {_sides(fields['patch'])}"
        f"{decoder}. Written by [mae_jax](https://github.com/mae-jax/mae_jax) "
        f"{mae_jax.__version__} from `{_public(info.path)}`."
    )


def _inputs(info: CheckpointInfo) -> str:
    """Return what inputs are like."""
    rows = {"size": _sides(info.size) if info.size else "any", "channels": info.channels}
    for name in ("mean", "std"):
        if values := getattr(info, name):
            rows[f"{name}, of values from 0 to 1"] = ", ".join(f"{x:.4g}" for x in values)
    if names := info.classes or []:
        more = f" and {len(names) - 20} more" if names[20:] else ""
        rows["classes of the data"] = ", ".join(names[:20]) + more
    return _table(rows)


def _recipe(run: Run) -> dict[str, Any]:
    """Return what the config says of the training."""
    config, data, optimizer = run.config, run.config["data"], run.config["optimizer"]
    mask, start = config.get("mask"), config["init"]["checkpoint"]
    rows = {
        "task": config["task"],
        "data": f"{_public(data['train']['source'])} ({data['modality']})",
        "steps": run.step if run.is_last else f"{run.step}, before the end of the run",
        "epochs of the run": f"{config['epochs']:g}",
        "batch size": config["batch_size"],
        "optimizer": optimizer.get("name", "adamw"),
        "base learning rate": f"{optimizer['base_learning_rate']:g} for a batch of 256",
        "warm-up": f"{optimizer['warmup_epochs']:g} epochs, then a cosine",
        "weight decay": f"{optimizer['weight_decay']:g}",
    }
    if mask:
        names = [mask["name"]] if isinstance(mask["name"], str) else mask["name"]
        rows["mask"] = f"{' or '.join(names)}, {mask['ratio']:.0%} of the patches"
    rows |= {"target": f"norm_pix = {config['model']['norm_pix']}"} if mask else {}
    rows |= {"precision": config["model"]["dtype"], "seed": config["seed"]}
    return rows | ({"started from": f"{_public(start)}, whose license applies"} if start else {})


def _curve(run: Run, folder: Path) -> str:
    """Return a table of losses over the steps and, at the end of a run, the curve as a picture."""
    losses = {record["step"]: record["loss"] for record in run.records if "loss" in record}
    tests = {x["step"]: x["test_loss"] for x in run.records if "test_loss" in x}
    steps = sorted(losses)
    every = max(1, math.ceil(len(steps) / ROWS))
    rows = [[step, losses[step], tests.get(step, "")] for step in steps[::-1][::every][::-1]]
    table = _rows(["step", "loss", "test_loss"], rows) if rows else ""
    picture = run.folder / "pictures" / "loss.png"
    if not run.is_last or not picture.exists():
        return table
    (folder / picture.name).write_bytes(picture.read_bytes())
    return f"![loss](loss.png)\n\n{table}"


def _evaluation(run: Run) -> str:
    """Return the report of a finished run, or else the metrics of an evaluation at the step."""
    report = run.folder / "report.txt"
    if run.is_last and report.exists():
        return f"The report of the run:\n\n```text\n{report.read_text().strip()}\n```"
    evaluated = [x for x in run.records if x["step"] == run.step and "learning_rate" not in x]
    return _table({name: x for record in evaluated for name, x in record.items() if name != "step"})


def _table(rows: Mapping[str, Any]) -> str:
    return _rows(["", ""], [*rows.items()]) if rows else ""


def _rows(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    text = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x).replace("|", "\\|")
    line = lambda cells: f"| {' | '.join(map(text, cells))} |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def _sides(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))


def _public(place: str) -> str:
    """Return a place without the folders of this machine: of `folder:/a/b` only `folder`."""
    if "://" in place:  # of a bucket the last part
        return place.rstrip("/").rpartition("/")[2]
    kind, _, rest = place.partition(":")
    if kind == "hf":
        return place
    return place.rpartition("/")[2] if "/" in kind else kind if "/" in rest else place
