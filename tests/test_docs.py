"""The documentation agrees with the package: commands, options, names, links, generated pages, tutorials."""

import ast
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

import keras_resnet
from keras_resnet.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}
BLOCKS_TO_RUN = (
    ("docs/weights.md", "## Specifications"),
    ("docs/own-images.md", "## Arrays"),
    ("docs/tutorials/replace_keras_applications.md", "## A model of keras.io"),
)
"""Pages and headings of Python blocks that need neither files nor a download."""
PAGES_TO_RUN = ("docs/detection.md",)
"""Pages on which this holds for all Python blocks (not for those marked `py`), which share their variables."""


def blocks(page, language):
    """The fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page):
    """Every `keras-resnet` command of a page, in a block or in a line, as a list of words."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(keras-resnet [^`]+)`", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S))
    for line in lines:
        if command := re.search(r"keras-resnet (.*)", line):
            yield shlex.split(command[1], comments=True)


@pytest.mark.parametrize("page", [page for page in PAGES if "keras-resnet " in PAGES[page]])
def test_the_commands_and_options_in_the_documentation_exist(page):
    for words in commands(page):
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            if words[0].startswith("-"):
                break
            assert words[0] in command.commands, f"{page}: keras-resnet {' '.join(words)}"
            command = command.commands[words.pop(0)]
        options = {option for row in command.params for option in (*row.opts, *row.secondary_opts)} | {"--help", "-h"}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= options, f"{page}: {command.name} has no {used - options}"


def test_the_test_modules_in_the_documentation_exist():
    for page, text in PAGES.items():
        for path in re.findall(r"tests/[\w/]+\.py", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize("page", PAGES)
def test_the_python_in_the_documentation_uses_names_that_exist(page):
    for block in blocks(page, "python"):
        if "--8<--" in block:
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "keras_resnet":
                assert hasattr(keras_resnet, node.attr), f"{page}: keras_resnet.{node.attr}"


@pytest.mark.parametrize(("page", "heading"), BLOCKS_TO_RUN)
def test_the_python_in_the_documentation_runs(page, heading, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    section = PAGES[page].split(heading)[1]
    exec(re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1], {})


@pytest.mark.parametrize("page", PAGES_TO_RUN)
def test_all_python_of_a_page_in_the_documentation_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec("".join(blocks(page, "python")), {})


@pytest.mark.parametrize("page", PAGES)
def test_links_and_plots_in_the_documentation_exist(page):
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)):
        if not target.startswith(("http://", "https://", "#")):
            assert (folder / target.split("#")[0]).exists(), f"{page}: {target}"
    for target in re.findall(r'^--8<-- "(.+)"$', PAGES[page], re.MULTILINE):
        assert (ROOT / target).exists(), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_api_reference_has_every_public_name():
    page = PAGES["docs/api/keras_resnet.md"]
    found = re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE) + re.findall(r"`(\w*ResNe\w+|PlainNet\w+)`", page)
    assert set(keras_resnet.__all__) <= set(found)


@pytest.mark.parametrize("package", ["analysis", "transfer", "deployment"])
def test_the_api_reference_has_functions_named_like_their_module(package):
    """The others are taken from the package's `__all__`; of these, the generator would show the module."""
    for name in import_module(f"keras_resnet.{package}").__all__:
        if (ROOT / "keras_resnet" / package / f"{name}.py").exists():
            assert f"::: keras_resnet.{package}.{name}.{name}\n" in PAGES[f"docs/api/{package}.md"]


def test_the_model_table_is_up_to_date():
    page = runpy.run_path(str(DOCS / "generate_models.py"))["page"]()
    assert PAGES["docs/models.md"] == page, "run `python docs/generate_models.py`"


def test_the_readme_takes_two_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 120


def run_tutorial(name, monkeypatch, capsys, *arguments):
    """What a tutorial prints."""
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    runpy.run_path(str(DOCS / "tutorials" / name), run_name="__main__")
    return capsys.readouterr().out


def test_the_tutorial_on_keras_applications_gets_the_same_probabilities(monkeypatch, capsys, tmp_path):
    printed = run_tutorial("replace_keras_applications.py", monkeypatch, capsys, tmp_path)
    assert "the same layer names: True" in printed
    assert float(re.search(r"difference of a probability: (\S+)", printed)[1]) < 1e-5
    assert (tmp_path / "replace_keras_applications.png").stat().st_size > 1000


def test_the_tutorial_on_an_own_folder_runs(monkeypatch, capsys, tmp_path):
    printed = run_tutorial("own_folder.py", monkeypatch, capsys, tmp_path, "", "1")
    assert "of 100 validation images (kept)" in printed
    assert (tmp_path / "run" / "model.keras").exists()


@pytest.mark.slow
def test_the_tutorial_on_an_own_folder_learns_ants_and_bees(test_data, monkeypatch, capsys, tmp_path):
    printed = run_tutorial("own_folder.py", monkeypatch, capsys, tmp_path, test_data / "hymenoptera", "10")
    accuracies = [float(text) for text in re.findall(r": ([\d.]+)% of", printed)]
    assert max(accuracies) > 60


def test_the_tutorial_on_degradation_runs(monkeypatch, capsys, tmp_path):
    printed = run_tutorial("degradation.py", monkeypatch, capsys, tmp_path, "1", "20,32")
    assert "residual networks, from 20 to 32 layers" in printed
    assert (tmp_path / "degradation.png").exists()


@pytest.mark.slow
def test_the_tutorial_on_degradation_finds_it(monkeypatch, capsys, tmp_path):
    printed = run_tutorial("degradation.py", monkeypatch, capsys, tmp_path)
    plain, residual = (float(text) for text in re.findall(r"training error ([+-][\d.]+)", printed))
    assert plain > 10 and residual < 5
