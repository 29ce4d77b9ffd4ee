"""Evaluate a checkpoint: python -m mae_jax.evaluate --checkpoint=PATH --data=SOURCE [...]"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mae_jax.config import command_line
from mae_jax.config.errors import UserError, user_errors
from mae_jax.data import image_io, sources
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import device_mesh, processes
from mae_jax.evaluators import features, heldout, knn, linear_probe
from mae_jax.evaluators.features import Feature
from mae_jax.models import mae, patches, vit
from mae_jax.output import tables
from mae_jax.tasks import classify
from mae_jax.weights import load

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SMALL = 2_000_000  # examples times classes up to which scikit-learn's probe takes minutes at most


def evaluate(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All that can be said of a checkpoint on some data.

    Returns:
      Tables for the screen, and the same figures by name.

    Raises:
      ValueError, OSError: in one sentence, what does not fit.
    """
    image_io.configure_libraries()
    mesh = device_mesh.make_mesh()
    fields = {name: getattr(options, name) for name in ("heads", "decoder_heads", "norm_pix")}
    without = options.without
    found = load.find(options.checkpoint, without=without, size=options.size, **fields)
    view, model = view_of(found, options), found.model
    params = load.parameters(found, without=without, size=view.size, mesh=mesh)
    variables = {"params": params}
    test = sources.open_source(options.data, options.test_split, view.data["modality"])

    count = sum(x.size for x in jax.tree.leaves(params))
    options.mask = {"ratio": 0.75} | (found.config or {}).get("mask", {})
    if options.mask_ratio is not None:
        options.mask["ratio"] = options.mask_ratio
    texts = [
        f"{options.checkpoint}: {type(model).__name__}, {count / 1e6:.1f} M parameters, "
        f"{'x'.join(map(str, view.size))} values in {len(test):,} test examples of {options.data}"
    ]
    figures: dict[str, Any] = dict(
        checkpoint=options.checkpoint, data=options.data, parameters=count, size=view.size
    )
    options.loss = (found.config or {}).get("loss")
    for part in (reconstruction, classification, frozen_features):
        of = view if part is classification else view._replace(clips=1, crops=1)
        text, found_figures = part(model, variables, of, test, options, mesh, found.classes)
        texts += [text] * bool(text)
        figures |= found_figures
    return "\n\n".join(texts), figures


def view_of(found: load.Found, options: argparse.Namespace) -> heldout.View:
    """How examples are shown: as asked, else as in the run that trained the checkpoint."""
    data = dict((found.config or {}).get("data", {"modality": "image", "repeats": 1}))
    data |= {"size": options.size or found.size or data.get("size", (224, 224))}
    data |= {"channels": found.channels, "threads": options.threads}
    if data["modality"] in ("image", "video"):
        data["center_crop"] = options.center_crop or data.get("center_crop", 0.875)
    if options.size and len(options.size) != len(found.model.patch):
        raise ValueError(f"--size={options.size} is not one of {len(found.model.patch)} axes")
    if len(data["size"]) != len(found.model.patch) or found.model.categories and not found.config:
        raise ValueError(
            f"{found.path} is no model of pictures, and only a work directory says how its "
            "examples are read: evaluate that"
        )
    known = {"mean": found.mean, "std": found.std}
    chosen = {name: getattr(options, name) or x or IMAGENET[name] for name, x in known.items()}
    for name, values in chosen.items():
        if len(values) != found.channels:
            raise ValueError(
                f"{name} has {len(values)} values for {found.channels} channel(s): give --{name}"
            )
    known = (found.config or {}).get("evaluate", {})
    views = {name: known.get(name, 1) for name in ("clips", "crops")}
    view = heldout.View(data, tuple(chosen["mean"]), tuple(chosen["std"]), **views)
    patches.grid_of(view.size, found.model.patch)
    return view


def reconstruction(model, variables, view, test, options, mesh, classes) -> tuple[str, dict]:
    """The loss on hidden patches, beside that of the mean of the visible ones."""
    if not isinstance(model, mae.MaskedAutoencoder):
        return "", {}
    losses, _ = heldout.reconstruction(
        model,
        view,
        options.mask,
        test,
        examples=options.examples,
        batch_size=options.batch_size,
        shown=1,
        mesh=mesh,
        key=jax.random.key(options.seed),
    )
    found = losses(variables)
    kind, ratio = heldout.kind_of(model), options.mask["ratio"]
    text = tables.table(
        [
            [f"held-out loss on the {ratio:.0%} hidden patches ({kind})", ""],
            [f"  {heldout.trivial_name(model)}", f"{found['visible_mean']:.4f}"],
            [f"  checkpoint ({found['examples']:,} examples)", f"{found['trained']:.4f}"],
        ]
    )
    return text, {"loss": found["trained"], "loss_visible_mean": found["visible_mean"]}


def classification(model, variables, view, test, options, mesh, classes) -> tuple[str, dict]:
    """What a classifier's own head says: accuracy, and precision, recall and F1 of each class."""
    if not isinstance(model, vit.Classifier) or not model.classes:
        return "", {}
    names = classes or test.classes
    if len(test.classes) != model.classes or len(names) != model.classes:
        raise ValueError(
            f"{options.checkpoint} tells {model.classes} classes apart, but {options.data} has "
            f"{len(test.classes)}: evaluate it on data of the same classes, or its features alone "
            "with --without='head/.*'"
        )
    if tuple(names) != tuple(test.classes):
        raise ValueError(
            f"{options.checkpoint} and {options.data} have different classes: "
            f"{features.different(names, test.classes)}"
        )
    kind = "binary" if np.ndim(test[0]["label"]) else "softmax"
    if options.loss not in (None, kind):
        raise ValueError(
            f"{options.checkpoint} was trained with loss = {options.loss!r}, but {options.data} "
            f"has {'several labels' if kind == 'binary' else 'one label'} for an example"
        )
    predict = classify.predictor(model, view, mesh, kind)
    found = predict(variables, test, options.examples, options.batch_size)
    text, figures, each = classify.summary(*found, names, kind)
    return text, figures | {"classes": each}


def frozen_features(model, variables, view, test, options, mesh, classes) -> tuple[str, dict]:
    """kNN and linear probe of frozen features, which are written to a file if asked."""
    labelled = len(test.classes) > 1 and not np.ndim(test[0]["label"])
    if not labelled and not options.features:
        return f"no classes that exclude each other in {options.data}, so no probes", {}
    if not -model.depth <= options.block < model.depth:
        raise ValueError(f"--block={options.block} is none of {model.depth} blocks, from 0 on")
    default = Feature(options.block % model.depth, options.pooling, options.norm)
    train = sources.open_source(options.data, options.train_split, view.data["modality"])
    if train.classes != test.classes:
        raise ValueError(
            f"the splits of {options.data} have different classes: "
            f"{features.different(train.classes, test.classes)}"
        )

    def extracted(wanted, *parts) -> list[features.Table]:
        table = features.extractor(model, wanted, view, mesh)
        return [table(variables, part, options.examples, options.batch_size) for part in parts]

    chosen, lines, figures = (default, options.standardize), [], {}
    if options.sweep and labelled:
        norms = [True, False] if "norm" in variables["params"]["encoder"] else [False]
        scores = sweep(lambda wanted: extracted(wanted, train)[0], model.depth, norms, options.seed)
        chosen = max(scores, key=lambda candidate: scores[candidate])
        rows = [["kNN on a held-out fifth of the training examples", "standardised", "as it is"]]
        for feature in dict.fromkeys(feature for feature, _ in scores):
            cells = [scores[feature, standard] for standard in (True, False)]
            marks = ["*" * (chosen == (feature, standard)) for standard in (True, False)]
            rows.append(
                [f"  {feature}", *(f"{mark}{x:.3f}" for mark, x in zip(marks, cells, strict=True))]
            )
        lines += [tables.table(rows), "* chosen, on training examples alone"]
        figures["sweep"] = [
            feature._asdict() | {"standardize": standard, "knn_train": x}
            for (feature, standard), x in scores.items()
        ]
    wanted = list(dict.fromkeys([default, chosen[0]]))
    parts: dict[str, features.Table] = {}
    parts["train"], parts["test"] = extracted(wanted, train, test)
    if not all(np.isfinite(x).all() for part in parts.values() for x in part.features.values()):
        raise ValueError(f"the features are not finite: {options.checkpoint} holds NaN or infinity")
    if options.features and jax.process_index() == 0:
        write_features(options.features, chosen[0], parts, test.classes)
    if not labelled:
        return f"features are in {options.features}; no classes, so no probes", {}
    data = {name: part.labelled() for name, part in parts.items()}
    ks, kind = options.k, options.linear
    size = len(data["train"][1]) * len(test.classes)
    if kind == "auto":
        kind = "sklearn" if size <= SMALL else "lars"
    titles = [f"kNN k={k}" for k in ks] + ([f"linear ({kind})"] if kind != "none" else [])
    rows = [["accuracy of frozen features", *titles]]
    for feature, standard in dict.fromkeys([(default, options.standardize), chosen]):
        found = accuracies(data, feature, standard, ks, kind)
        name = f"{feature}, {'standardised' if standard else 'as it is'}"
        rows.append([f"  {name}", *(f"{x:.4f}" for x in found.values())])
        prefix = "" if (feature, standard) == (default, options.standardize) else "chosen_"
        figures |= {prefix + key: x for key, x in found.items()}
        figures[f"{prefix}feature"] = feature._asdict() | {"standardize": standard}
    counts = " and ".join(f"{len(labels):,} {name}" for name, (_, labels) in data.items())
    lines += [tables.table(rows), f"({counts} examples)"]
    return "\n".join(lines), figures


def sweep(extracted, depth: int, norms: list[bool], seed: int) -> dict[tuple[Feature, bool], float]:
    """kNN (k = 20) accuracy of each feature, standardised or not, on a fifth of the examples.

    Args:
      extracted: a table of the training examples, of the features asked for. They are asked for
        a norm at a time, which bounds the memory.
    """
    scores = {}
    for norm in norms:
        kinds = {
            (block, pooling): Feature(block, pooling, norm)
            for block in range(depth)
            for pooling in ("mean", "cls")
        }
        table, labels = extracted(list(kinds.values())).labelled()
        order = np.random.default_rng(seed).permutation(len(labels))
        held, kept = np.split(order, [max(1, len(order) // 5)])
        if not len(kept):
            raise ValueError("a sweep needs at least two labelled training examples")
        for block in range(depth):
            mean, cls = (table.pop(kinds[block, pooling]) for pooling in ("mean", "cls"))
            both = np.concatenate([cls, mean], axis=1)
            for pooling, x in (("mean", mean), ("cls", cls), ("both", both)):
                for standard in (True, False):
                    parts = x[kept], x[held]
                    parts = knn.standardize(*parts) if standard else parts
                    found = knn.knn(parts[0], labels[kept], parts[1], labels[held])
                    scores[Feature(block, pooling, norm), standard] = found[20]
    return dict(sorted(scores.items(), key=lambda item: item[0][0].block))


def accuracies(data, feature: Feature, standard: bool, ks, linear: str) -> dict[str, float]:
    """`knn_5` ..., `linear` of one feature, trained on all training examples."""
    (train, labels), (test, test_labels) = data["train"], data["test"]
    x, y = train[feature], test[feature]
    x, y = knn.standardize(x, y) if standard else (x, y)
    found = {f"knn_{k}": v for k, v in knn.knn(x, labels, y, test_labels, ks).items()}
    if linear != "none":
        probe = {"sklearn": linear_probe.linear, "lars": linear_probe.fit_lars}[linear]
        x, y = (x, y) if standard else knn.standardize(x, y)
        found["linear"] = probe(x, labels, y, test_labels)
    return found


def write_features(path: str, feature: Feature, parts: dict[str, features.Table], classes) -> None:
    """`train_features` [n, d], `train_labels`, `train_index` in the source; same for `test`."""
    arrays: dict[str, Any] = {
        "feature": np.array(str(feature)),
        "classes": np.array(classes, dtype=str),
    }
    for name, table in parts.items():
        arrays |= {
            f"{name}_features": table.features[feature],
            f"{name}_labels": table.labels,
            f"{name}_index": table.index,
        }
    with open(path, "wb") as f:  # np.savez would add an ending of its own
        np.savez(f, **arrays)


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
    p.add_argument("--examples", type=int, default=20_000, help="of each split, at most")
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
    p.add_argument("--json", metavar="FILE", help="write the figures there")
    p.add_argument("--heads", type=int, help="where a file does not say it")
    p.add_argument("--decoder-heads", type=int)
    p.add_argument("--norm-pix", action=flag, default=None)
    return p


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for a number that cannot be, before any work."""
    for name in ("examples", "batch_size", "threads"):
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
    try:
        options = parser().parse_args()
        with user_errors((ValueError, OSError, ImportError, Unreadable)):
            check(options)
            processes.start_processes()
            text, figures = evaluate(options)
            if jax.process_index() == 0:
                print(text)
                if options.json:
                    Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # a compilation that goes on would crash


if __name__ == "__main__":
    main()
