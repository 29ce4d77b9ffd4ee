"""The evaluation of a checkpoint, by the evaluators that suit its model and the data."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_jax import evaluators
from mae_jax.config import command_line, nested, schema, sections
from mae_jax.data import image_io, sources
from mae_jax.distributed import device_mesh
from mae_jax.evaluators import features
from mae_jax.evaluators.evaluator import Context, Result
from mae_jax.models import mae
from mae_jax.output import files
from mae_jax.weights import load
from mae_jax.weights import options as load_options
from mae_jax.weights.checkpoint_info import CheckpointInfo

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
Values = Mapping[str, Any]  # of a section of a config, or the sections `evaluators` by name


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint sees which data, and how: see `find`."""
    add = parser.add_argument
    add_model_options(parser)
    add("--data", required=True, help="photos, folder:PATH, idx:PATH, tfds:NAME, ...")
    add("--center-crop", type=float, help="fraction of the side that is shown")
    add("--examples", type=int, default=0, help="of each split, at most; 0 = all")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint is used, and how inputs are shown to it."""
    add, numbers = parser.add_argument, command_line.numbers
    add("--checkpoint", required=True, help="work directory[:STEP], file or Hugging Face folder")
    load_options.add(parser)
    add("--mean", type=numbers(float), help="per channel, of pixels in [0, 1]")
    add("--std", type=numbers(float))
    field = "how numbers become values: range=(0,4095), nodata=-9999, bands=(3,2,1), ..."
    add("--data-field", type=command_line.assignment, action="append", default=[], help=field)
    add("--batch-size", type=int, default=256)
    add("--threads", type=int, default=16)


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which feature of the encoder is taken."""
    add, flag = parser.add_argument, argparse.BooleanOptionalAction
    add("--block", type=int, help="of the feature; default: as in the run, or the last, -1")
    add("--pooling", choices=["mean", "cls", "both"], help="default: as in the run, or mean")
    add("--norm", action=flag, help="take the feature after the last norm; default: likewise")


def find(options: argparse.Namespace) -> tuple[CheckpointInfo, Context]:
    """Return a checkpoint before its parameters are read, and how examples are shown to its model.

    Args:
      options: those of `add_options` or `add_model_options`, and further ones of a command.

    Raises:
      ValueError: there is no such checkpoint, or an option is out of its range or does not fit.
    """
    _check(options)
    image_io.configure_libraries()
    info = load.find(options.checkpoint, **load_options.given(options))
    return info, make_context(info, options, device_mesh.make_mesh())


def open_split(
    open_part: Callable[[Mapping[str, str]], sources.Source],
    options: argparse.Namespace,
    otherwise: str = "test",
) -> tuple[str, sources.Source]:
    """Open the split of `--data` that options choose, and return its name.

    That is by default "all", or `otherwise` where "all" is unknown.

    Args:
      open_part: opens a `source` and its `split`, such as `Context.open`.
    """
    open_split = lambda split: (split, open_part(dict(source=options.data, split=split)))
    if not options.split:
        try:
            return open_split("all")
        except ValueError as error:  # such as of the built-in sources
            try:
                return open_split(otherwise)
            except ValueError:
                raise error from None
    return open_split(options.split)


def evaluate(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Evaluate a checkpoint with the options of the command `evaluate`, and write its files.

    Returns tables for the screen, and the same metrics by name; raises ValueError or OSError with
    one sentence on what does not fit.
    """
    info, context = find(options)
    size, depth = context.transform.size, context.model.depth
    if options.block is not None and not -depth <= options.block < depth:
        raise ValueError(f"--block={options.block} is none of {depth} blocks, from 0 on")
    variables = {"params": load.parameters(info, size=size, mesh=context.mesh)}
    config = info.config or {}
    of_run = splits_of(config, options.data)
    train_split, test_split = options.train_split or of_run[0], options.test_split or of_run[1]
    part = lambda split: dict(source=options.data, split=split)
    given = {name: value for name, value in vars(options).items() if value is not None}
    given |= part(test_split) | dict(train=part(train_split), test=part(test_split))
    test = context.open(given)

    count = sum(x.size for x in jax.tree.leaves(variables))
    texts = [
        f"{options.checkpoint}: {type(context.model).__name__}, {count / 1e6:.1f} M parameters, "
        f"{'x'.join(map(str, size))} values in {len(test):,} examples of {options.data}, split "
        f"{test_split}"
    ]
    metrics = dict(checkpoint=options.checkpoint, data=options.data, parameters=count, size=size)
    labelled = len(test.classes) > 1 or sources.label_kind(test) == "number"
    for result in run_evaluators(context, variables, given, config, labelled):
        metrics |= {name.removesuffix("_trained"): x for name, x in result.metrics.items()}
        metrics |= result.details
        if result.text:
            texts.append(result.text)
        if options.pictures_to and jax.process_index() == 0:
            Path(options.pictures_to).mkdir(parents=True, exist_ok=True)
            for name, picture in result.pictures.items():
                picture.save(Path(options.pictures_to) / f"{name}.png")
    if options.features:
        entry = next(iter(entries_of(["knn"], given, config).values()))
        feature = schema.section(sections.Knn, entry)
        save_features(context, variables, {**feature, **metrics.get("chosen", {})}, given)
    metrics.pop("chosen", None)
    if options.json and jax.process_index() == 0:
        files.write_json(options.json, metrics)
    if not labelled:
        texts.append(f"no classes and no numbers in {options.data}, so no probes")
    return "\n\n".join(texts), metrics


def splits_of(config: Values, source: str) -> tuple[str, str]:
    """Return the splits that a run's evaluators learned from and tested on, of its own source."""
    train, test = set(), set()
    if nested.flatten(config).get("data.train.source") == source:
        for entry in config.get("evaluators", {}).values():
            flat = nested.flatten(entry)
            train.add(flat.get("train.split"))
            test |= {flat.get("split"), flat.get("test.split")}
    chosen = [{*names} - {None} for names in (train, test)]
    names = zip(chosen, ("train", "test"), strict=True)
    first, second = (next(iter(x)) if len(x) == 1 else default for x, default in names)
    return first, second


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that is out of its range, before any work."""
    for name, lowest in dict(examples=0, batch_size=1, threads=1, k=1, seed=0).items():
        value = getattr(options, name, None)
        if value is not None and np.min(value) < lowest:
            note = " (all)" if name == "examples" else ""
            option = name.replace("_", "-")
            raise ValueError(f"--{option}={value} must be at least {lowest}{note}")
    for name in ("mean", "std"):
        if not np.isfinite(getattr(options, name) or 0).all():
            raise ValueError(f"--{name}={getattr(options, name)} must be finite numbers")
    if options.std and min(options.std) <= 0:
        raise ValueError(f"--std={options.std} must be above 0")
    ratio = getattr(options, "mask_ratio", None)
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"--mask-ratio={ratio} must be between 0 and 1, such as .75")
    crop = getattr(options, "center_crop", None)
    if crop is not None and not 0 < crop <= 1:
        raise ValueError(f"--center-crop={crop} must be above 0 and up to 1")


def run_evaluators(
    context: Context, variables: dict, given: Values, config: Values, labelled: bool
) -> list[Result]:
    """Run the evaluators of the run, and one of each other type that suits the model and the data.

    Their options are those that are `given`, else those in the `config` of the run, else defaults.
    """
    task = "pretrain" if isinstance(context.model, mae.MaskedAutoencoder) else "classify"
    task = "regress" if context.targets else task
    left_out = {"custom"}
    if given.get("solver") == "none":
        left_out.add("linear_probe")
    if not (labelled and given["sweep"]):
        left_out.add("sweep")
    kinds = {n: kind for n, kind in sections.EVALUATORS[task].items() if n not in left_out}
    is_probe = lambda kind: issubclass(kind, sections.FeatureEvaluator)
    probes = [name for name, kind in kinds.items() if is_probe(kind)]
    others = [name for name in kinds if name not in probes]

    def run(kinds: Iterable[str], values: Values, custom: Values | None = None) -> Result:
        entries = entries_of(kinds, values, config) | dict(custom or {})
        return evaluators.report(evaluators.build(entries, context), variables)

    results = [run(others, given, custom_entries(given, config))]
    if labelled:
        chosen = results[0].details.get("chosen", {})
        results.append(run(probes, given))
        details = results[-1].details.items()
        if chosen and any(x != chosen for name, x in details if name.endswith("feature")):
            results.append(run(probes, {**given, **chosen}).prefixed("chosen_"))
    return results


def entries_of(kinds: Iterable[str], given: Values, config: Values) -> dict[str, dict[str, Any]]:
    """Return the entries of these types by their names: those of the run, or one with defaults.

    Entries that `given` values make equal, such as those of several sources, become one.
    """
    entries, usual = {}, {evaluators.SECTIONS[kind].usual_name or kind: kind for kind in kinds}
    of_run = config.get("evaluators", {})
    types = {name: values.get("type", usual.get(name)) for name, values in of_run.items()}
    types |= {name: kind for name, kind in usual.items() if kind not in types.values()}
    earlier = config.get("evaluate", {})  # the section of `classification` before version 0.2
    for name, kind in types.items():
        if kind not in usual.values():
            continue
        options = {**earlier, **of_run.get(name, {}), **given, "type": kind}
        if kind == "sweep" and not given["examples"]:
            del options["examples"]  # at most 20,000
        fields = evaluators.SECTIONS[kind].model_fields
        entry = {key: options[key] for key in fields if key in options and key != "every"}
        if entry not in entries.values():
            entries[name] = entry
    return entries


def custom_entries(given: Values, config: Values) -> dict[str, dict[str, Any]]:
    """Return the entries of `--evaluator=MODULE:CLASS`, with their options in the run, if any."""
    held_out = sections.HeldOutEvaluator.model_fields
    options = {key: given[key] for key in held_out if key in given}
    entries = {}
    for spec in given["evaluator"]:
        of_run = config.get("evaluators", {}).items()
        in_run = {name: values for name, values in of_run if values.get("evaluator") == spec}
        for name, values in (in_run or {spec.rpartition(":")[2].lower(): {}}).items():
            entries[name] = {**values, **options, "type": "custom", "evaluator": spec}
    return entries


def save_features(context: Context, variables: dict, feature: Values, given: Values) -> None:
    """Write one `feature` of both splits to the .npz file `given["features"]`, without pickles.

    The split `test` becomes `test_features` [n, d], `test_labels` and `test_index`, in the source.
    """
    block = feature["block"] % context.model.depth
    kind = features.Feature(block, feature["pooling"], feature["norm"])
    classes = np.array(context.open(given).classes, dtype=str)
    arrays: dict[str, Any] = dict(feature=str(kind), classes=classes)
    for name in ("train", "test"):
        table = context.table(variables, given[name], kind, given)
        arrays |= {f"{name}_features": table.features[kind]}
        arrays |= {f"{name}_labels": table.labels, f"{name}_index": table.index}
    if jax.process_index() == 0:
        with open(given["features"], "wb") as file:  # np.savez would add a suffix to a name
            np.savez(file, **arrays)


def _values(given: Sequence[tuple[str, Any]], data: Values) -> dict[str, Any]:
    """Return the keys of the section `data` that options give, after a check."""
    kind, known = sections.MODALITIES[data["modality"]], {*sections.Values.model_fields}
    known &= kind.model_fields.keys() - sections.Data.model_fields.keys()
    for name, value in given:
        if name not in known:
            keys = ", ".join(sorted(known)) or "none"
            raise ValueError(f"--data-field={name}={value} is none of {data['modality']}'s: {keys}")
        if value == "data":
            raise ValueError("--data-field range=data was not measured: give range=(LOW,HIGH)")
    needed = dict(train=dict(source=""), size=data["size"])
    section = schema.section(kind, needed | dict(given)) if given else {}
    return {name: section[name] for name, _ in given}


def make_context(info: CheckpointInfo, options: argparse.Namespace, mesh: Mesh) -> Context:
    """The model of a checkpoint, and how examples are shown to it.

    Options that are None are as in the run that trained the checkpoint, or else as on ImageNet.

    Raises:
      ValueError: what does not fit the model.
    """
    config, model = info.config or {}, info.model
    data = dict(config.get("data", {"modality": "image", "repeats": 1}))
    data |= {"size": options.size or info.size or data.get("size", (224, 224))}
    data |= {"channels": info.channels, "threads": options.threads}
    data |= _values(options.data_field, data)
    # "same" names the user's data: those of a checkpoint may be code, as in python:MODULE:FACTORY.
    data["train"] = {"source": getattr(options, "data", ""), "split": "train"}
    if data["modality"] in ("image", "video"):
        crop = getattr(options, "center_crop", None)
        data["center_crop"] = crop or data.get("center_crop", 0.875)
    if options.size and len(options.size) != len(model.patch):
        raise ValueError(f"--size={options.size} must be {len(model.patch)} numbers, as H,W")
    if len(data["size"]) != len(model.patch) or info.fields.get("vocab_size") and not config:
        raise ValueError(
            f"{info.path} is no model of pictures, and only a work directory says how its "
            "examples are read: evaluate that"
        )
    model.grid(data["size"])  # raises ValueError if the patch does not fit
    statistics = {}
    for name in ("mean", "std"):
        values = getattr(options, name) or getattr(info, name) or IMAGENET[name]
        if len(values) != info.channels:
            raise ValueError(
                f"{name} = {tuple(values)} has {len(values)} values, and the model has "
                f"{info.channels} channel(s): give --{name} with one number for each"
            )
        statistics[name] = tuple(values)
    ratio, seed = (getattr(options, name, None) for name in ("mask_ratio", "seed"))
    given = {} if ratio is None else {"ratio": ratio}
    mask = {"ratio": 0.75, **config.get("mask", {}), **given}
    key, loss = jax.random.key(seed or 0), config.get("loss")
    if seed is None and "seed" in config:
        key = evaluators.key_of(config["seed"])
    about: dict[str, Any] = dict(mesh=mesh, key=key, mask=mask, loss=loss, classes=info.classes)
    about["targets"] = info.targets
    return Context(model, data, **statistics, **about)
