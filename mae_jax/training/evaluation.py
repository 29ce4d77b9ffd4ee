"""The evaluations of a run as they were before there was a list of evaluators."""

from typing import Any

from mae_jax.evaluators import features, heldout
from mae_jax.output import tables
from mae_jax.tasks import classify


def build(config, task, source, mean, std, mesh, key):
    """`evaluate`, `draw` and `report` of a run."""
    of = _pretraining if config.task == "pretrain" else _classification
    return of(config, task.model, source, mean, std, mesh, key)


def _pretraining(config, model, source, mean, std, mesh, key):
    losses: Any = None
    draw: Any = lambda variables: None
    if config.data.test.source:
        losses, draw = heldout.reconstruction(
            model,
            heldout.view_of(config, mean, std),
            config.mask,
            heldout.opened(config, config.data.test),
            examples=config.evaluate.examples,
            batch_size=config.evaluate.batch_size,
            shown=config.evaluate.pictures,
            mesh=mesh,
            key=key,
        )
    accuracies = features.probe(config, mean, std, model, mesh)

    def evaluate(variables):
        figures = {"test_loss": losses(variables)["trained"]} if losses else {}
        return figures | (accuracies(variables) if accuracies else {})

    def report(variables, untrained):
        lines, figures = [], {}
        if losses:
            rows = losses(variables) | {"untrained": losses(untrained)["trained"]}
            names = {
                "visible_mean": heldout.trivial_name(model),
                "untrained": "untrained network",
                "trained": "trained network",
            }
            figures |= {f"loss_{name}": rows[name] for name in names}
            kind = heldout.kind_of(model)
            lines.append(
                tables.table(
                    [[f"held-out loss on hidden patches ({kind})", ""]]
                    + [["  " + text, f"{rows[name]:.4f}"] for name, text in names.items()]
                )
            )
        if accuracies:
            rows = {
                "raw pixels": accuracies(None),
                "untrained encoder": accuracies(untrained),
                "trained encoder": accuracies(variables),
            }
            for name, row in rows.items():
                short = name.split()[0]
                figures |= {f"{probe}_{short}": x for probe, x in row.items()}
            titles = [{"knn": "kNN"}.get(name, name) for name in rows["raw pixels"]]
            cells = [
                ["  " + name, *(f"{x:.3f}" for x in row.values())] for name, row in rows.items()
            ]
            lines.append(tables.table([["accuracy of frozen features", *titles], *cells]))
        return "\n\n".join(lines), figures

    return evaluate, draw, report


def _classification(config, model, source, mean, std, mesh, key):
    del key
    classes = source.classes
    test = heldout.opened(config, config.data.test) if config.data.test.source else None
    if test is not None and test.classes != classes:
        raise ValueError(
            f"{config.data.train.source!r} and the test data have different classes: "
            f"{features.different(classes, test.classes)}"
        )
    view = heldout.view_of(config, mean, std)
    view = view._replace(clips=config.evaluate.clips, crops=config.evaluate.crops)
    predict = classify.predictor(model, view, mesh, config.loss)

    def results(variables):
        found = predict(variables, test, config.evaluate.examples, config.evaluate.batch_size)
        text, figures, _ = classify.summary(*found, classes, config.loss)
        return text, figures

    def evaluate(variables):
        _, figures = results(variables) if test is not None else ("", {})
        return {name: x for name, x in figures.items() if name in classify.HEADLINES}

    def report(variables, untrained):
        if test is None:
            return "no test data: data.test.source is empty", {}
        return results(variables)

    return evaluate, lambda variables: None, report
