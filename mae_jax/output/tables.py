"""Tables and amounts as text."""

import datetime


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


def table(rows: list[list[str]]) -> str:
    """Text in aligned columns: the first to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    form = "  ".join([f"{{:{first}}}", *(f"{{:>{width}}}" for width in widths)])
    return "\n".join(form.format(*row).rstrip() for row in rows)


def listed(metrics: dict[str, float]) -> str:
    """`test_loss 0.4123  knn 0.8710` on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def amount(value: float | None, unit: str = "B") -> str:
    """`19.1 GFLOP`: at least three digits, with the prefix that fits."""
    if value is None:
        return "unknown"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
