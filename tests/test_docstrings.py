"""Public functions and classes have a docstring with an example that runs, and types."""

import doctest
import inspect
from importlib import import_module

import pytest

PACKAGES = ("keras_resnet", "keras_resnet.analysis", "keras_resnet.transfer", "keras_resnet.deployment")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def is_constructor(member):
    """Whether this is a function such as ResNet50: their arguments are documented at `create`."""
    return getattr(member, "__module__", "") == "keras_resnet.models.constructors"


def public_members():
    """{name: member} of the public functions and classes; a name that two packages export counts once."""
    members = {}
    for package in map(import_module, PACKAGES):
        members |= {name: getattr(package, name) for name in package.__all__}
    return {
        name: member
        for name, member in members.items()
        if inspect.isroutine(member) or (inspect.isclass(member) and not issubclass(member, Exception))
    }


MEMBERS = public_members()
DOCUMENTED = {name: member for name, member in MEMBERS.items() if not is_constructor(member)}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestFinder(recurse=False).find(DOCUMENTED[name], name, globs={})  # complete with its imports
    assert found and found[0].examples, f"the docstring of `{name}` should have an example"
    printed = []
    doctest.DocTestRunner(optionflags=FLAGS).run(found[0], out=printed.append)
    assert not printed, "".join(printed)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_first_line_is_a_sentence(name):
    line = inspect.getdoc(MEMBERS[name]).splitlines()[0]
    assert line.endswith((".", ":")), line


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if inspect.isroutine(DOCUMENTED[name])])
def test_arguments_and_results_have_types(name):
    signature = inspect.signature(DOCUMENTED[name])
    arguments = [row.name for row in signature.parameters.values() if row.annotation is row.empty]
    assert not arguments and signature.return_annotation is not signature.empty, arguments
