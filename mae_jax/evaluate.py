"""Evaluate a checkpoint: python -m mae_jax.evaluate --checkpoint=PATH --data=SOURCE [...]"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax

from mae_jax import evaluators
from mae_jax.config import command_line, errors
from mae_jax.data import image_io, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh, processes
from mae_jax.evaluators import checkpoint_context, features
from mae_jax.models import mae
from mae_jax.models.heads.classification import Classifier
from mae_jax.weights import checkpoint_info, load


def evaluate(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Evaluate a checkpoint on some data.

    Returns:
      Tables for the screen, and the same metrics by name.

    Raises:
      ValueError, OSError: in one sentence, what does not fit.
    """
    image_io.configure_libraries()
    mesh = device_mesh.make_mesh()
    fields = {name: getattr(options, name) for name in ("heads", "decoder_heads", "norm_pix")}
    fields |= dict(without=options.without, size=options.size)
    found = load.find(options.checkpoint, **fields)
    context = context_of(found, options, mesh)
    size, depth = context.transform.size, context.model.depth
    if not -depth <= options.block < depth:
        raise ValueError(f"--block={options.block} is none of {depth} blocks, from 0 on")
    variables = {"params": load.parameters(found, size=size, mesh=mesh)}
    test = context.open(part(options, "test"))
    labelled = len(test.classes) > 1 and not sources.is_multilabel(test)
    run = lambda sections: evaluators.report(evaluators.build(sections, context), variables)

    results = [run(model_sections(context, options, found.config or {}, labelled))]
    names = ("pooling", "norm", "standardize")
    default = dict(block=options.block % depth) | {name: getattr(options, name) for name in names}
    chosen = results[0].details.pop("chosen", default)
    if options.features:
        save_features(context, options, variables, chosen)
    if labelled:
        results.append(run(probe_sections(options, default)))
        if chosen != default:
            results.append(run(probe_sections(options, chosen)).prefixed("chosen_"))

    count = sum(x.size for x in jax.tree.leaves(variables))
    metrics: dict[str, Any] = dict(checkpoint=options.checkpoint, data=options.data)
    metrics |= dict(parameters=count, size=size)
    for result in results:
        metrics |= {name.removesuffix("_trained"): x for name, x in result.metrics.items()}
        metrics |= result.details
    about = (
        f"{options.checkpoint}: {type(context.model).__name__}, {count / 1e6:.1f} M parameters, "
        f"{'x'.join(map(str, size))} values in {len(test):,} test examples of {options.data}"
    )
    texts = [about, *(result.text for result in results if result.text)]
    if not labelled:
        texts.append(f"no classes that exclude each other in {options.data}, so no probes")
    return "\n\n".join(texts), metrics


def context_of(found: checkpoint_info.CheckpointInfo, options, mesh) -> evaluators.Context:
    """The model and how examples are shown: as asked, else as the checkpoint was trained."""
    context = checkpoint_context.make(
        found,
        mesh,
        size=options.size,
        mean=options.mean,
        std=options.std,
        center_crop=options.center_crop,
        threads=options.threads,
    )
    ratio = {} if options.mask_ratio is None else {"ratio": options.mask_ratio}
    context = context._replace(
        mask={**(context.mask or {}), **ratio}, key=jax.random.key(options.seed)
    )
    return context.with_tables()


def part(options: argparse.Namespace, name: str) -> dict[str, str]:
    """The source and split of the `train` or the `test` examples."""
    return dict(source=options.data, split=getattr(options, f"{name}_split"))


def model_sections(context, options, config, labelled: bool) -> dict[str, dict[str, Any]]:
    """The evaluators that suit the model, and the sweep if it is asked for."""
    shared = dict(examples=options.examples, batch_size=options.batch_size)
    sections = {}
    if isinstance(context.model, mae.MaskedAutoencoder):
        sections["reconstruction"] = dict(shared, **part(options, "test"))
    if isinstance(context.model, Classifier) and context.model.classes:
        views = config.get("evaluate", {}) | config.get("evaluators", {}).get("classification", {})
        views = {name: views[name] for name in ("clips", "crops") if name in views}
        sections["classification"] = dict(shared, **part(options, "test"), **views)
    if options.sweep and labelled:
        sections["sweep"] = dict(shared, train=part(options, "train"), seed=options.seed)
    return {name: dict(section, type=name) for name, section in sections.items()}


def probe_sections(options: argparse.Namespace, feature: dict) -> dict[str, dict[str, Any]]:
    """The evaluators of a frozen feature."""
    shared = dict(feature, examples=options.examples, batch_size=options.batch_size)
    shared |= {name: part(options, name) for name in ("train", "test")}
    sections = dict(knn=dict(shared, type="knn", k=options.k))
    if options.linear != "none":
        sections["linear"] = dict(shared, type="linear_probe", solver=options.linear)
    return sections


def save_features(context, options: argparse.Namespace, variables, feature: dict) -> None:
    """Write the features of both splits to the file `--features`."""
    kind = features.Feature(feature["block"], feature["pooling"], feature["norm"])
    parts = {name: part(options, name) for name in ("train", "test")}
    tables = {
        name: context.tables.table(variables, each, kind, options.examples, options.batch_size)
        for name, each in parts.items()
    }
    if jax.process_index() == 0:
        features.save(options.features, kind, tables, context.open(parts["test"]).classes)


def parser() -> argparse.ArgumentParser:
    numbers = command_line.numbers
    p = command_line.Parser("python -m mae_jax.evaluate", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "--checkpoint",
        required=True,
        help="work directory[:STEP], .pth, .safetensors or Hugging Face folder",
    )
    p.add_argument("--data", required=True, help="photos, folder:PATH, idx:PATH, tfds:NAME, ...")
    p.add_argument("--without", default="", help="names to leave out, such as 'decoder/.*'")
    p.add_argument("--train-split", default="train", help="that the probes learn from")
    p.add_argument("--test-split", default="test")
    p.add_argument("--size", type=numbers(int), help="H,W; default: as trained")
    p.add_argument("--mean", type=numbers(float), help="per channel, of pixels in [0, 1]")
    p.add_argument("--std", type=numbers(float))
    p.add_argument("--center-crop", type=float, help="share of the side that is shown")
    p.add_argument("--examples", type=int, default=0, help="of each split, at most; 0 = all")
    p.add_argument("--batch-size", type=int, default=256)
    p.add_argument("--threads", type=int, default=16)
    p.add_argument("--mask-ratio", type=float, help="default: as trained, or .75")
    p.add_argument("--block", type=int, default=-1, help="of the feature; -1 is the last")
    p.add_argument("--pooling", choices=["mean", "cls", "both"], default="mean")
    flag = argparse.BooleanOptionalAction
    p.add_argument("--norm", action=flag, default=True, help="after the last norm")
    p.add_argument("--standardize", action=flag, default=True, help="on the training examples")
    p.add_argument(
        "--sweep",
        action="store_true",
        help="try every block, pooling, norm; choose on training examples",
    )
    p.add_argument("--k", type=numbers(int), default=(5, 20, 100), help="neighbours")
    p.add_argument("--linear", choices=["auto", "sklearn", "lars", "none"], default="auto")
    p.add_argument("--seed", type=int, default=0, help="of masks and of the sweep's held-out fifth")
    p.add_argument("--features", metavar="FILE.npz", help="write the features there")
    p.add_argument("--json", metavar="FILE", help="write the metrics there")
    p.add_argument("--heads", type=int, help="where a file does not say it")
    p.add_argument("--decoder-heads", type=int)
    p.add_argument("--norm-pix", action=flag, default=None)
    return p


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for a number that cannot be, before any work."""
    if options.examples < 0:
        raise ValueError(f"--examples={options.examples} must be at least 1, or 0 for all")
    for name in ("batch_size", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.k) < 1:
        raise ValueError(f"--k={options.k} must be numbers of at least 1")
    if options.seed < 0:
        raise ValueError(f"--seed={options.seed} must be at least 0")
    if options.std and min(options.std) <= 0:
        raise ValueError(f"--std={options.std} must be above 0")
    if options.center_crop is not None and not 0 < options.center_crop <= 1:
        raise ValueError(f"--center-crop={options.center_crop} must be above 0 and up to 1")
    for name in ("features", "json"):
        place = getattr(options, name)
        if place and not Path(place).absolute().parent.is_dir():
            raise ValueError(f"--{name}={place}: there is no folder {Path(place).parent}")


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        check(options)
        processes.start_processes()
        text, metrics = evaluate(options)
        if jax.process_index() == 0:
            print(text)
            if options.json:
                Path(options.json).write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
