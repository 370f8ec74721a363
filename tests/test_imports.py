"""The layering: a module imports only from the rooms above it, and the package stays as cheap as Keras."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resnet

PACKAGE = Path(keras_resnet.__file__).parent
ROWS = (Path(__file__).parents[1] / "docs" / "ARCHITECTURE.md").read_text("utf-8")
ORDER = [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)\.py` \|", ROWS, re.MULTILINE)]
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
LAZY = {
    "tensorflow_datasets",
    "keras_tuner",
    "sklearn",
    "matplotlib",
    "onnx",
    "huggingface_hub",
    "safetensors",
    "h5py",
    "PIL",
}


WHERE_USED = {"search.hypermodel", "search.oracles"}
"""Modules about KerasTuner's classes, which are themselves imported inside functions."""


def imports(path, top_level_only=False):
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an absolute import says where a thing is"
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module.removeprefix("keras_resnet.") in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_above(name):
    above = {f"keras_resnet.{other}" for other in ORDER[: ORDER.index(name)]} | (
        {"keras_resnet", "keras_resnet.analysis", "keras_resnet.transfer"} if name.startswith("cli.") else set()
    )
    inside = {module for module in imports(MODULES[name]) if module.split(".")[0] == "keras_resnet"}
    assert inside <= above


@pytest.mark.parametrize("name", ORDER)
def test_heavy_libraries_are_imported_where_they_are_used(name):
    known = LAZY - ({"keras_tuner"} if name in WHERE_USED else set())
    found = {module.split(".")[0] for module in imports(MODULES[name], top_level_only=True)} & known
    assert not found
    inside = {module.removeprefix("keras_resnet.") for module in imports(MODULES[name], top_level_only=True)}
    assert not inside & WHERE_USED or name in WHERE_USED


def test_architecture_imports_keras_alone():
    for name in ORDER:
        if name.startswith("architecture."):
            roots = {module.split(".")[0] for module in imports(MODULES[name])}
            assert roots - set(sys.stdlib_module_names) <= {"keras", "keras_resnet", "numpy", "tensorflow"}


def test_importing_the_package_imports_little_more_than_keras():
    script = "import sys, keras; known = {*sys.modules}; import keras_resnet; print(*{*sys.modules} - known)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "keras_resnet" in loaded and not loaded & LAZY
