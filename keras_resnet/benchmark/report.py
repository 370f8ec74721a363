"""The result of `compare` as a table and notes for the terminal."""

from itertools import groupby

from rich.table import Table
from rich.text import Text


def table(report):
    """A rich Table with a line for each task, contender and precision."""
    baseline = report["baseline"]
    out = Table(box=None, header_style="bold")
    out.add_column("task", no_wrap=True)
    out.add_column("network", overflow="fold")
    out.add_column("precision", overflow="fold")
    for header in ("median", f"vs {baseline['contender']} {baseline['precision']}", "vs same precision", "peak memory"):
        out.add_column(header, justify="right")
    for task, rows in groupby(report["results"], key=lambda row: row["task"]):
        for number, row in enumerate(rows):
            out.add_row("" if number else task, *_cells(row))
    return out


def notes(report):
    """Lines of Text about the settings and the machine, and what was not measured."""
    settings, machine = report["settings"], report["machine"]
    devices = dict.fromkeys(row["device"] for row in report["results"] if row["device"])
    lines = [
        f"{settings['model']}, batch {settings['batch_size']} at {settings['image_size']} px, Keras on "
        f"{settings['backend']}, "
        f"{settings['rounds']} rounds: medians; ratios within a round, above 1 is faster (least to greatest)",
        ", ".join([machine["cpu"], f"{machine['cores']} cores", *devices]),
        ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    ]
    skipped = {}
    for row in report["not_measured"]:
        skipped.setdefault((row["contender"], row["task"], row["reason"]), []).append(row["precision"])
    for (contender, task, reason), precisions in skipped.items():
        lines.append(f"not measured: {' '.join(filter(None, (contender, task)))} ({', '.join(precisions)}): {reason}")
    return [Text(line) for line in lines]


def _cells(row):
    memory = row["peak_device_memory"] or row["peak_memory"]
    return (
        row["network"],
        row["precision"],
        _quantity(row["median"], row["unit"]),
        _ratio(row["ratio"]),
        _ratio(row["ratio_same_precision"]),
        f"{memory / 2**30:.2f} GiB" if memory else "",
    )


def _quantity(value, unit):
    """A value with three digits or more: 9.18 images/s, 1234 images/s."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _ratio(ratio):
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
