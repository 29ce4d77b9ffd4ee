"""Tables and amounts as text."""


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def table(rows: list[list[str]]) -> str:
    """Text in aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [x.rjust(w) for x, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def listed(figures: dict[str, float]) -> str:
    """`test_loss 0.4123  knn 0.8710` on one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())


def amount(value: float | None, unit: str = "B") -> str:
    """`19.1 GFLOP`: at least three digits, with the prefix that fits."""
    if value is None:
        return "unknown"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
