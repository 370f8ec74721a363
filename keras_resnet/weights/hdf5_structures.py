"""Checks of structures in HDF5 files that libhdf5 follows without end: heaps of strings, and trees of names and chunks.

The layouts are those of the HDF5 File Format Specification, version 3.0, sections III.A.1, III.A.2 and III.E.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_resnet.weights.weights_file import Budget, WeightsFileError

_HEAP_MAGIC = b"GCOL\x01"
_MAX_NODE_BYTES, _MAX_TREE_DEPTH = 2048, 2
"""Limits of trees in the newer form; h5py's defaults hold 40,000 names."""
_CHUNK_LAYOUT = re.compile(rb"(?=\x03\x02([\x02-\x21])(.{8})|[\x01\x02]([\x02-\x21])\x02\0{5}(.{8}))", re.DOTALL)
"""Storage of a chunked array: number of axes, and address of its tree."""


@dataclass(frozen=True)
class _Node:
    """Header of a node in a tree of names (kind 0) or chunks (kind 1)."""

    kind: int
    level: int
    entries: int
    right: int
    """Address of the next node of the level."""


def check_structures(content: Any, budget: Budget) -> int:
    """Check the heaps and trees of an HDF5 file, before libhdf5 opens it.

    Args:
        content: the bytes of the file.
        budget: what remains for the file.

    Returns:
        Size of the largest object in the heaps, hence of the largest string outside the attributes themselves.

    Raises:
        WeightsFileError: for objects that do not fit into their heap or end nowhere, and for nodes that contain
            themselves or each other.
    """
    nodes = _tree_nodes(content, budget)
    _check_siblings(nodes)
    _check_children(content, nodes, budget)
    for start in _positions(content, b"BTHD\x00"):
        size, _, depth = struct.unpack_from("<IHH", content, start + 6)
        if size > _MAX_NODE_BYTES or depth > _MAX_TREE_DEPTH:
            raise WeightsFileError(f"The HDF5 tree at byte {start} should not be as deep as {depth} levels.")
    return _largest_string(content)


def _positions(content, magic) -> Iterator[int]:
    """Positions of some bytes in a file, in order, where at least 32 bytes follow."""
    start = content.find(magic)
    while 0 <= start <= len(content) - 32:
        yield start
        start = content.find(magic, start + 1)


def _largest_string(content):
    """Size of the largest object in the global heaps, where HDF5 stores strings; they may not overlap."""
    largest, end = 0, 0
    for start in _positions(content, _HEAP_MAGIC):
        if start < end:
            raise WeightsFileError(f"The HDF5 heap at byte {start} should not be inside another one.")
        end = min(start + struct.unpack_from("<Q", content, start + 8)[0], len(content))
        position = start + 16
        while position + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", content, position)
            step = 16 + -(-size // 8) * 8 if index else size
            if step < 16 or position + step > end:
                raise WeightsFileError(f"The HDF5 heap at byte {start} should be a sequence of objects that fit in it.")
            largest = max(largest, step)
            position += step
    return largest


def _tree_nodes(content, budget):
    """{address: _Node} of all nodes."""
    nodes = {}
    for start in _positions(content, b"TREE"):
        budget.spend(steps=1)
        kind, level, entries, right = struct.unpack_from("<4xBBH8xQ", content, start)
        nodes[start] = _Node(kind, level, entries, right)
    return nodes


def _check_siblings(nodes):
    """Raises WeightsFileError unless each level is a chain: each node follows one other, the first one none."""
    rights = [node.right for node in nodes.values() if node.right in nodes]
    seen = set()
    for start in set(nodes) - set(rights):
        while start in nodes and start not in seen:
            seen.add(start)
            start = nodes[start].right
    if len(set(rights)) < len(rights) or len(seen) < len(nodes):
        raise WeightsFileError("The nodes of an HDF5 tree should not follow each other in a circle.")


def _check_children(content, nodes, budget):
    """Raises WeightsFileError for a child that has two parents, or is not of the level below."""
    inner = {start: node.kind for start, node in nodes.items() if node.level}
    work = [(start, 8) for start, kind in inner.items() if kind == 0]
    if 1 in inner.values():  # keys of chunks are as long as their array has axes
        layouts = ((ord(match[1] or match[3]), match[2] or match[4]) for match in _CHUNK_LAYOUT.finditer(content))
        roots = {(int.from_bytes(address, "little"), 8 + 8 * axes) for axes, address in layouts}
        work += [(start, key_size) for start, key_size in roots if inner.get(start) == 1]
    seen = set()
    for start, key_size in work:
        node = nodes[start]
        budget.spend(steps=node.entries)
        first, step = start + 24 + key_size, key_size + 8
        for position in range(first, min(first + node.entries * step, len(content) - 7), step):
            child = struct.unpack_from("<Q", content, position)[0]
            if child not in nodes:
                continue
            if nodes[child].level != node.level - 1 or nodes[child].kind != node.kind or (child, key_size) in seen:
                raise WeightsFileError(f"The HDF5 tree at byte {start} should not contain a node twice or itself.")
            seen.add((child, key_size))
            if inner.get(child) == 1:
                work.append((child, key_size))
