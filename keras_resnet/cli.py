"""keras-resnet: one command, one call each."""

import json
import shlex
import sys
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

import keras_resnet
from keras_resnet.benchmark.compare import compare
from keras_resnet.benchmark.contenders import CONTENDERS, PRECISIONS, TASKS
from keras_resnet.benchmark.report import notes, table
from keras_resnet.data.pictures import find_pictures
from keras_resnet.files import replacing
from keras_resnet.weights.catalog import WEIGHTS

app = typer.Typer(
    help="Residual networks in Keras: build, load anybody's weights, train, look at pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out, err = Console(), Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Weights = Annotated[str | None, typer.Option(help="A tag (see `keras-resnet models`) or the path of a weights file.")]


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help='Which networks, as in a shell: "*cifar*".')] = "*",
    as_json: AsJson = False,
):
    """List the networks: depth, parameters, multiply-adds, known weights (all tags, if only one network matches)."""
    names = keras_resnet.list_models(pattern)
    if not names:
        raise ValueError(f"`pattern` should match a name of `keras-resnet models`. Received: pattern={pattern!r}")
    rows = [_model_row(name) for name in names]
    if as_json:
        return _print_json(rows)
    table = Table("network", "depth", "parameters", "multiply-adds", "at", box=None, header_style="bold")
    table.add_column("weights", overflow="fold")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["depth"]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            f"{row['input_size']} px",
            _in_full(row["name"], row["weights"]) if len(rows) == 1 else _in_short(row["weights"]),
        )
    out.print(table)


def _in_full(name, tags):
    """One tag a line, with its published ImageNet top-1 accuracy and its licence where the catalog has them."""
    sources = {tag: WEIGHTS.get((name, tag)) for tag in tags}
    facts = {tag: f" (top-1 {source.top1} %, {source.licence})" for tag, source in sources.items() if source}
    return "\n".join(tag + facts.get(tag, "") for tag in tags)


def _in_short(tags):
    """["imagenet", "hf://timm/a", "hf://timm/b"] -> "imagenet, hf://timm (2)"."""
    groups = Counter("hf://timm" if tag.startswith("hf:") else tag.split(":")[0] for tag in tags)
    return ", ".join(f"{group} ({count})" if group != "imagenet" else group for group, count in groups.items())


def _model_row(name):
    spec = keras_resnet.get_spec(name)
    cost = keras_resnet.complexity(spec)
    return {
        "name": name,
        "depth": spec.layers,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "input_size": spec.default_size,
        "weights": keras_resnet.list_weights(name),
    }


@app.command()
def summary(
    name: Annotated[str, typer.Argument(help="A network of `keras-resnet models`, or a .keras file.")],
    weights: Weights = None,
):
    """Show a network layer by layer."""
    model = _model(name, weights)
    model.summary(line_length=min(out.width, 120), print_fn=lambda line: out.print(line, highlight=False, markup=False))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Picture files, or folders of them.", metavar="IMAGE...")],
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`, or a .keras file.")] = "resnet50",
    weights: Weights = None,
    top: Annotated[int, typer.Option(help="Classes a picture.", min=1)] = 5,
    as_json: AsJson = False,
):
    """Say what is in pictures. Files that are no pictures are listed, and make the exit status 1."""
    paths = find_pictures(images)  # before any weights are fetched
    network = _model(model, weights, default_weights="imagenet")
    answers = keras_resnet.predict(network, paths, top=top)
    answers = list(track(answers, "looking", len(paths), console=err, transient=True, disable=not err.is_terminal))
    if as_json:
        _print_json([_as_json(answer) for answer in answers])
    else:
        _print_predictions(answers)
    bad = [answer for answer in answers if answer.error]
    for answer in bad:
        err.print("[red]not read:[/]", Text(f"{answer.path}: {answer.error}"), soft_wrap=True)
    if bad:
        raise typer.Exit(1)


def _as_json(answer):
    classes = [{"id": i, "name": name, "probability": float(share)} for i, name, share in answer.classes]
    return {"path": str(answer.path), "error": answer.error, "classes": classes}


def _print_predictions(answers):
    table = Table(box=None, header_style="bold")
    table.add_column("picture", overflow="fold")
    table.add_column("class", no_wrap=True)
    table.add_column("probability", no_wrap=True, justify="right")
    for answer in answers:
        for rank, (_, name, share) in enumerate(answer.classes):
            table.add_row(str(answer.path) if rank == 0 else "", name, f"{100 * share:.1f} %")
    if table.row_count:
        out.print(table)


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A row of RECIPES.")] = "quickstart",
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`.")] = "resnet20",
    dataset: Annotated[
        str, typer.Option(help="digits, a name of tensorflow-datasets, or a folder with a folder for each class.")
    ] = "digits",
    workdir: Annotated[
        Path | None, typer.Option(help="Folder for what the run leaves.", show_default="runs/RECIPE")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field of the recipe: --set epochs=2.", metavar="FIELD=VALUE"),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where tensorflow-datasets keeps its data.")] = None,
    download: Annotated[bool, typer.Option(help="Whether a missing data set may be downloaded.")] = True,
    validation_split: Annotated[
        str | None,
        typer.Option(help="Test on this share or number of the training pictures; the test set stays untouched."),
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Leave out files that cannot be read.")] = False,
    devices: Annotated[
        int | None, typer.Option(help="GPUs to use, or parts of the CPU.", show_default="all GPUs")
    ] = None,
    sync_batch_norm: Annotated[bool, typer.Option(help="Batch norm over all devices' pictures.")] = False,
    precision: Annotated[str | None, typer.Option(help="float32, mixed_bfloat16 or mixed_float16.")] = None,
    xla: Annotated[bool | None, typer.Option(help="Compile with XLA.", show_default="only on a GPU")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    deterministic: Annotated[bool, typer.Option(help="The same numbers in every run on this machine.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints within an epoch.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier run in the folder.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write logs for TensorBoard.")] = False,
    validation_freq: Annotated[int, typer.Option(help="Epochs between tests.", min=1)] = 1,
):
    """Train a network, and leave model, checkpoint, log, curves, settings and report in a folder."""
    row = keras_resnet.get_recipe(recipe, **dict(map(_assignment, changes or ())))
    workdir = workdir or Path("runs") / recipe
    options = {"data_dir": data_dir, "download": download, "skip_bad": skip_bad}
    if validation_split:
        options["validation_split"] = _value(validation_split)
    with _last_words():
        report = keras_resnet.train(
            model,
            partial(keras_resnet.load_dataset, dataset, **options),
            row,
            workdir,
            seed,
            overwrite,
            resume=resume,
            checkpoint_every=checkpoint_every,
            deterministic=deterministic,
            devices=devices,
            sync_batch_norm=sync_batch_norm,
            precision=precision,
            xla=xla,
            tensorboard=tensorboard,
            validation_freq=validation_freq,
        ).report
    out.print(
        f"top-1 accuracy {100 * report['top1_accuracy']:.2f} % on {report['test_images']} test pictures, "
        f"{report['wall_time_s']:.0f} s, everything in {workdir}/",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _last_words():
    """Ctrl-C says how to go on; typer would swallow that."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print("[red]stopped:[/]", Text(str(stop)), soft_wrap=True)
        raise typer.Exit(130) from None


def _assignment(text):
    """ "epochs=2" -> ("epochs", 2)."""
    field, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`--set` should be FIELD=VALUE, such as epochs=2. Received: --set {text}")
    return field, _value(value)


def _value(text):
    """ "2" -> 2, "0.5" -> 0.5, "cosine" -> "cosine"."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A weights file, or a tag.", metavar="IN")],
    target: Annotated[Path, typer.Argument(help=".safetensors, .pth, .h5, .weights.h5 or .keras.", metavar="OUT")],
    model: Annotated[str, typer.Option(help="The network the weights are of.")],
    layout: Annotated[str, typer.Option(help="Names to write: keras, torchvision, timm, cifar, auto.")] = "keras",
):
    """Convert weights from one library's file to another's."""
    network = keras_resnet.create(model, include_top=None, weights=source)
    keras_resnet.save_weights(network, target, layout=layout)
    out.print(f"{target}: {network.name}, {network.count_params():,} numbers in the {layout} layout", highlight=False)


@app.command()
def benchmark(
    model: Annotated[str, typer.Option(help="A network of `keras-resnet models`.")] = "resnet50",
    batch_size: Annotated[int, typer.Option(help="Pictures a step.", min=1)] = 16,
    image_size: Annotated[int | None, typer.Option(help="Their sides.", show_default="the network's usual one")] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(PRECISIONS)}.", show_default="float32")
    ] = None,
    contenders: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(CONTENDERS)}.", show_default="all that are installed")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(TASKS)}.", show_default="all")] = None,
    rounds: Annotated[int, typer.Option(help="Turns for each contender.", min=1)] = 5,
    steps: Annotated[
        int | None, typer.Option(help="Batches a turn.", min=1, show_default="as many as take two seconds")
    ] = None,
    xla: Annotated[bool | None, typer.Option(help="Compile Keras with XLA.", show_default="where it is faster")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the whole report; - prints it instead of a table.")
    ] = None,
):
    """Measure a network side by side with keras.applications, torch, ONNX Runtime and OpenVINO, where installed.

    Lists are separated by commas, or their option is repeated. Leave the machine alone meanwhile.
    """
    as_json = json_file == Path("-")
    with (
        nullcontext() if json_file is None or as_json else replacing(json_file) as partial,
        err.status("") as status,
    ):
        report = compare(
            model,
            batch_size,
            image_size,
            _split(precision) or ("float32",),
            _split(contenders) or tuple(CONTENDERS),
            _split(tasks) or tuple(TASKS),
            rounds,
            steps,
            xla,
            progress=status.update if err.is_terminal else lambda text: err.print(Text(text)),
        )
        report = {"command": shlex.join(["keras-resnet", *sys.argv[1:]]), **report}
        if partial:
            partial.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if as_json:
        return _print_json(report)
    out.print(table(report))
    for note in notes(report):
        out.print(note, soft_wrap=True, highlight=False)
    if not report["results"]:
        raise typer.Exit(1)


def _split(texts):
    """["a,b", "c"] -> ("a", "b", "c")."""
    return tuple(name.strip() for text in texts or () for name in text.split(","))


def _model(name, weights, default_weights=None):
    """A network by its name, or the model in a .keras file."""
    if name.endswith(".keras"):
        if weights is not None:
            raise ValueError(
                f"`--weights` should be left out: a .keras file has its own. Received: --weights {weights}"
            )
        return keras_resnet.load_model(name)
    return keras_resnet.create(name, weights=weights or default_weights)


def _print_json(value):
    print(json.dumps(value, indent=2))


def _note(message, category, *_):
    """A warning as a line for people; those for developers are left out."""
    if issubclass(category, UserWarning):
        err.print("[yellow]note:[/]", Text(str(message)), soft_wrap=True)


def main():
    """The entry point: an error is one message and an exit status of 1, never a traceback."""
    warnings.showwarning = _note
    try:
        app()
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        err.print("[red]error:[/]", Text(str(error)), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("[red]stopped[/]")
        sys.exit(130)
