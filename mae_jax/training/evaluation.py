"""The evaluators of a run."""

from mae_jax import evaluators


def build(config, task, source, mean, std, mesh, key):
    """`evaluate`, `draw` and `report` of a run."""
    context = evaluators.Context(
        task.model,
        config.data,
        mean,
        std,
        mesh,
        key,
        mask=config.get("mask"),
        loss=config.get("loss"),
        classes=source.classes,
    )
    entries = evaluators.build(config.evaluators, context)
    drawn = [entry.evaluator for entry in entries if hasattr(entry.evaluator, "draw")]

    def evaluate(variables):
        return evaluators.join([entry.evaluate(variables) for entry in entries]).metrics

    def report(variables, untrained):
        found = evaluators.report(entries, variables, untrained)
        return found.text or "no evaluation: the config has no evaluators", found.metrics

    return evaluate, lambda variables: drawn[0].draw(variables) if drawn else None, report
