"""The import order of modules and folders, and the cost of importing the package."""

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
    "faster_coco_eval",
    "datasets",
    "webdataset",
    "braceexpand",
    "pyarrow",
}
LAZY_MODULES = {
    "search.hypermodel": "keras_tuner",
    "search.oracles": "keras_tuner",
    "data.pillow_images": "PIL",
    "data.pillow_operations": "PIL",
}
"""Modules that import a heavy library, and are themselves imported inside functions, or by each other."""
FOLDERS = [
    ["errors", "equivalents", "schema", "files", "locks", "machine", "precision", "normalization"],
    ["architecture", "variants"],
    ["data"],
    ["weights"],
    ["models", "prediction", "detection", "localization", "segmentation", "drawing"],
    [
        *("metrics", "detection_metrics", "segmentation_metrics", "evaluation_results", "detection_results"),
        *("localization_results", "segmentation_results", "detection_evaluation", "localization_evaluation"),
        *("segmentation_evaluation", "evaluation"),
    ],
    ["training"],
    ["analysis"],
    ["studies", "transfer", "search"],
    ["deployment"],
    ["benchmark"],
    ["cli"],
]
"""Folders and top-level modules in import order."""
RANK = {name: rank for rank, name in enumerate(name for row in FOLDERS for name in row)}


def imports(path, top_level_only=False):
    """Names of the modules that a file imports."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports should be absolute"
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module.removeprefix("keras_resnet.") in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_the_architecture_page_lists_every_module_in_the_order_of_the_folders():
    assert sorted(MODULES) == sorted(ORDER)
    ranks = [RANK[name.split(".")[0]] for name in ORDER]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_a_docstring(path):
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert docstring and docstring.splitlines()[0].endswith((".", "?"))


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_modules_listed_above_it(name):
    above = {f"keras_resnet.{other}" for other in ORDER[: ORDER.index(name)]} | (
        {"keras_resnet", "keras_resnet.analysis", "keras_resnet.transfer"} if name.startswith("cli.") else set()
    )
    inside = {module for module in imports(MODULES[name]) if module.split(".")[0] == "keras_resnet"}
    assert inside <= above
    rank = RANK[name.split(".")[0]]
    assert all(RANK[module.split(".")[1]] <= rank for module in inside if "." in module)


@pytest.mark.parametrize("name", ORDER)
def test_heavy_libraries_are_imported_inside_functions(name):
    known = LAZY - {LAZY_MODULES.get(name)}
    found = {module.split(".")[0] for module in imports(MODULES[name], top_level_only=True)} & known
    assert not found
    inside = {module.removeprefix("keras_resnet.") for module in imports(MODULES[name], top_level_only=True)}
    assert not inside & LAZY_MODULES.keys() or name in LAZY_MODULES


def test_architecture_needs_only_keras():
    for name in ORDER:
        if name.startswith("architecture."):
            roots = {module.split(".")[0] for module in imports(MODULES[name])}
            assert roots - set(sys.stdlib_module_names) <= {"keras", "keras_resnet", "numpy", "tensorflow"}


def test_importing_the_package_loads_no_heavy_library_besides_keras():
    script = "import sys, keras; known = {*sys.modules}; import keras_resnet; print(*{*sys.modules} - known)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "keras_resnet" in loaded and not loaded & LAZY
