"""Griffe extension: doctest examples in docstrings become code blocks; Markdown would read them as quotations."""

from griffe import Extension


class DoctestFences(Extension):
    """Puts a fence around every doctest block of every docstring."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text):
    """The docstring with fences: a block reaches from a line that starts with `>>>` to the next blank line."""
    lines, block_indent = [], None
    for line in [*text.splitlines(), ""]:
        if block_indent is None and line.lstrip().startswith(">>>"):
            block_indent = line[: len(line) - len(line.lstrip())]
            lines.append(f"{block_indent}```pycon")
        elif block_indent is not None and not line.strip():
            lines.append(f"{block_indent}```")
            block_indent = None
        lines.append(line)
    return "\n".join(lines[:-1])
