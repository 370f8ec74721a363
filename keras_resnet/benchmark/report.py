"""The result of `compare` as a table and notes for the terminal."""

from itertools import groupby


def table_rows(report):
    """Yields {column: text} for each task, contender and precision."""
    baseline = "vs {contender} {precision}".format(**report["baseline"])
    for task, rows in groupby(report["results"], key=lambda row: row["task"]):
        for number, row in enumerate(rows):
            memory = row["peak_device_memory"] or row["peak_memory"]
            yield {
                "task": "" if number else task,
                "network": row["network"],
                "precision": row["precision"],
                "median": _quantity(row["median"], row["unit"]),
                baseline: _ratio(row["ratio"]),
                "vs same precision": _ratio(row["ratio_same_precision"]),
                "peak memory": f"{memory / 2**30:.2f} GiB" if memory else "",
            }


def notes(report):
    """Lines about the settings and the machine, and what was not measured."""
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
    return lines


def _quantity(value, unit):
    """A value with three digits or more: 9.18 images/s, 1234 images/s."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def _ratio(ratio):
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
