"""`Mutator`: mutated copies of a file, each from a seed: other bytes, in the file or in one part of it, or JSON values.

Parts are changed with intact sizes and checksums around them, which random bytes in the whole file would hardly reach.
"""

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import h5py

INTEGERS = (0, 1, 7, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
"""Lengths, offsets and counts that overwrite others."""
DEEP = "nested 100,000 times"
"""Becomes arrays within arrays, which no encoder writes."""
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 5, 16, 1.5, 1e308, 2**31, 10**30, float("nan"), float("inf"), DEEP),
    *("", "x", "1", "None", "x" * 100_000, [], {}, [[]], [{}], [None], ["x"], [1.5], [-1], [10**9] * 4, [1] * 1000),
    *({"x": 1}, {"config": {}}),
)
"""JSON values that replace others."""
PARTS = 4
"""The first parts of a container are mutated; the others are arrays or images, like these."""


@dataclass(frozen=True)
class Container:
    """A file format with parts."""

    unpack: Callable[[bytes], dict[str, bytes]]
    pack: Callable[[bytes, dict[str, bytes]], bytes]
    """(original file, changed parts) -> file."""


def _unpack_zip(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pack_zip(content, changed):
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file := io.BytesIO(), "w") as target:
        for info in source.infolist():
            target.writestr(info, changed.get(info.filename, source.read(info)))
    return file.getvalue()


def _unpack_tar(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def _pack_tar(content, changed):
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        for name, part in (_unpack_tar(content) | changed).items():
            info = tarfile.TarInfo(name)
            info.size = len(part)
            archive.addfile(info, io.BytesIO(part))
    return file.getvalue()


def _unpack_safetensors(content):
    return {"header": content[8 : 8 + struct.unpack("<Q", content[:8])[0]]}


def _pack_safetensors(content, changed):
    header = _unpack_safetensors(content)["header"]
    return struct.pack("<Q", len(changed["header"])) + changed["header"] + content[8 + len(header) :]


def _unpack_hdf5(content):
    """The attributes of the file that are text."""
    with h5py.File(io.BytesIO(content), "r") as file:
        texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}
        return {name: text.encode() for name, text in texts.items() if isinstance(text, str)}


def _pack_hdf5(content, changed):
    with h5py.File(file := io.BytesIO(content), "r+") as archive:
        for name, text in changed.items():
            archive.attrs[name] = text[:60_000].replace(b"\0", b"")  # longer attributes are impossible
    return file.getvalue()


CONTAINERS = {
    "zip": Container(_unpack_zip, _pack_zip),
    "tar": Container(_unpack_tar, _pack_tar),
    "safetensors": Container(_unpack_safetensors, _pack_safetensors),
    "hdf5": Container(_unpack_hdf5, _pack_hdf5),
    "json": Container(lambda content: {"document": content}, lambda content, changed: changed["document"]),
    None: Container(lambda content: {}, lambda content, changed: content),
}


class Mutator:
    """A function of seeds, which are integers, that returns mutated copies of a file.

    Args:
        content: contents of the file.
        container: a name in CONTAINERS.
    """

    def __init__(self, content: bytes, container: str | None = None):
        self.content, self.container = content, CONTAINERS[container]
        self.parts = dict(list(self.container.unpack(content).items())[:PARTS])

    def __call__(self, seed: int) -> bytes:
        generator = random.Random(seed)
        name = generator.choice([*self.parts, None])
        if name is None:
            return _edit_bytes(self.content, generator)
        part = self.parts[name]
        edit = _edit_json if part[:1] in (b"{", b"[") and _parse(part) is not None else _edit_bytes
        return self.container.pack(self.content, {name: edit(part, generator)})


def _edit_bytes(content, generator):
    """The bytes after one to three edits."""
    for _ in range(generator.randint(1, 3)):
        content = generator.choice(_BYTE_EDITS)(content, _position(content, generator), generator)
    return content


def _position(content, generator):
    """Anywhere, or near the beginning or the end, where formats have most of their structure."""
    near = min(len(content), 300)
    starts = (range(len(content) + 1), range(near + 1), range(len(content) - near, len(content) + 1))
    return generator.choice(generator.choice(starts))


def _flip_bit(content, at, generator):
    flipped = bytes(byte ^ (1 << generator.randrange(8)) for byte in content[at : at + 1])  # none at the end
    return content[:at] + flipped + content[at + 1 :]


def _overwrite(content, at, generator):
    new = generator.randbytes(generator.randint(1, 8))
    return content[:at] + new + content[at + len(new) :]


def _overwrite_integer(content, at, generator):
    size, order = generator.choice((1, 2, 4, 8)), generator.choice(("little", "big"))
    new = (generator.choice(INTEGERS) % 2 ** (8 * size)).to_bytes(size, order)
    return content[:at] + new + content[at + size :]


def _truncate(content, at, generator):
    return content[:at]


def _insert(content, at, generator):
    return content[:at] + generator.randbytes(generator.randint(1, 8)) + content[at:]


def _delete(content, at, generator):
    return content[:at] + content[at + generator.randint(1, 64) :]


def _splice(content, at, generator):
    start = _position(content, generator)
    piece = content[start : start + generator.randint(1, 64)]
    return content[:at] + piece + content[at + generator.choice((0, len(piece))) :]


_BYTE_EDITS = (_flip_bit, _overwrite, _overwrite_integer, _truncate, _insert, _delete, _splice)


def _edit_json(text, generator):
    """JSON after one edit: a value is replaced, removed or renamed; also in JSON within a string."""
    document = [json.loads(text)]
    places = list(_places(document))
    texts = [place for place in places if _is_json_text(place[0][place[1]])]
    parent, key = generator.choice(texts if texts and generator.random() < 0.5 else places)
    if _is_json_text(parent[key]):
        parent[key] = _edit_json(parent[key].encode(), generator).decode()
    elif parent is document or (action := generator.random()) < 0.7:
        other, name = generator.choice(places)
        parent[key] = generator.choice([generator.choice(VALUES), json.loads(json.dumps(other[name]))])
    elif (value := parent.pop(key)) is not None and action < 0.85 and isinstance(parent, dict):
        parent[f"{key}x"] = value
    return json.dumps(document[0]).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


def _places(parent):
    """(parent, key) of every value in a list or dict of JSON values."""
    for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
        yield parent, key
        if isinstance(parent[key], (dict, list)):
            yield from _places(parent[key])


def _is_json_text(value):
    return isinstance(value, str) and value[:1] in ("{", "[") and _parse(value) is not None


def _parse(text):
    try:
        return json.loads(text)
    except ValueError:
        return None
