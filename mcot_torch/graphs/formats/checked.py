"""GraphML, Matrix Market and SciPy's .npz read with suspicion: what a file claims is checked before memory is taken for it.

Each parser raises kinds of its own: `formats.load_graph` makes one line of them.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.parsers import expat
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.errors import InputError
from mcot_torch.system.files import read_arrays

__all__ = ["import_extra", "is_scipy", "read_graphml", "read_matrix_market", "read_scipy"]

_BANNER = (
    ("%%matrixmarket",),
    ("matrix",),
    ("coordinate", "array"),
    ("real", "double", "integer", "unsigned-integer", "pattern"),
    ("general", "symmetric"),
)
_EXAMPLE = "%%MatrixMarket matrix coordinate real general"
_SCIPY = ("format", "shape", "data", "indices", "indptr", "row", "col", "coords", "offsets", "_is_array")
_AXES = {"csr": 1, "csc": 1, "coo": 1, "bsr": 3, "dia": 2}  # format -> axes of its data
_MOST_BYTES = 400_001_000  # of each: 50 million entries


def import_extra(module: str) -> Any:
    """A module of an optional package; `InputError` says how to install it."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InputError(f'{package} is not installed: pip install "mcot_torch[formats]"') from None


def read_graphml(path: Path) -> Any:
    """A network; entities, of which XML bombs are made and which can name other files, are refused: GraphML needs none."""

    def refuse(name: str, *_: object) -> None:
        raise InputError(
            f"{path}: declares the XML entity {name:.40}; write out what it stands for and drop the DOCTYPE"
        )

    parser = expat.ParserCreate()
    parser.EntityDeclHandler = refuse
    with open(path, "rb") as file:
        parser.ParseFile(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ports, keys without a type: nothing of a graph is lost
        return import_extra("networkx").read_graphml(path)


def read_matrix_market(path: Path) -> Any:
    """A matrix of real numbers, dense or sparse. SciPy's own reader is not used: wrong files make it write past its arrays.

    Raises:
        ValueError: a banner, sizes or entries that do not fit each other.
    """
    with open(path, encoding="latin-1") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a matrix without entries
        banner = file.readline()
        words = banner.lower().split()
        if len(words) != len(_BANNER) or not all(word in known for word, known in zip(words, _BANNER, strict=True)):
            raise ValueError(f"its first line is {banner.strip()[:60]!r}; it must be such as '{_EXAMPLE}'")
        dense, pattern, symmetric = words[2] == "array", words[3] == "pattern", words[4] == "symmetric"
        line = next((line for line in file if line.strip() and not line.startswith("%")), "")
        sizes = [int(word) if word.isdecimal() and len(word) < 19 else -1 for word in line.split()]
        if len(sizes) != (2 if dense else 3) or min(sizes) < 0 or (symmetric and sizes[0] != sizes[1]):
            raise ValueError(f"its line of sizes is {line.strip()[:60]!r}, which fits no {' '.join(words[1:])}")
        table = np.loadtxt(file, comments="%", ndmin=2)
    rows, columns = sizes[:2]
    entries = sizes[2] if not dense else rows * (rows + 1) // 2 if symmetric else rows * columns
    width = 1 if dense else 2 if pattern else 3
    if len(table) != entries or (entries and table.shape[1] != width):
        raise ValueError(
            f"its sizes ask for {entries:,} lines of {width} number(s), and {len(table):,} of {table.shape[1]} follow"
        )
    if dense:
        return _triangle(table[:, 0], rows) if symmetric else table.reshape(columns, rows).T
    ends = table.reshape(entries, width)[:, :2] - 1
    outside = ~((ends == np.floor(ends)) & (ends >= 0) & (ends < [rows, columns])).all(axis=1)
    if outside.any():
        i = int(outside.argmax())
        raise ValueError(
            f"entry {i + 1} stands in row {ends[i, 0] + 1:g}, column {ends[i, 1] + 1:g} of {rows} × {columns}"
        )
    row, column = ends.astype(np.int64).T
    values = np.ones(entries) if pattern else table.reshape(entries, width)[:, 2]
    if symmetric:
        other = row != column
        row, column = np.append(row, column[other]), np.append(column, row[other])
        values = np.append(values, values[other])
    return sp.coo_array((values, (row, column)), shape=(rows, columns))


def _triangle(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """A symmetric matrix from its lower triangle, column by column."""
    matrix = np.zeros((n, n))
    column, row = np.triu_indices(n)
    matrix[row, column] = matrix[column, row] = values
    return matrix


def read_scipy(path: Path) -> Any:
    """A sparse matrix. SciPy's own reader is not used: its loops follow indices that are wrong out of their arrays.

    Raises:
        ValueError: arrays that do not fit each other.
    """
    found = read_arrays(path, dict.fromkeys(_SCIPY, _MOST_BYTES))
    kind = "".join(found["format"].reshape(-1)[:1].astype(str).tolist())
    if kind not in _AXES:
        raise ValueError(f"its format is {kind[:20]!r}; {', '.join(_AXES)} are read")
    data, shape = found["data"], _whole(found, "shape")
    if data.dtype.kind not in "biuf" or data.ndim != _AXES[kind] or len(shape) != 2:
        raise ValueError(f"data has dtype {data.dtype} and {data.ndim} axes, and the matrix {len(shape)}")
    if kind == "dia":
        column = np.broadcast_to(np.arange(data.shape[1]), data.shape)
        row = column - _whole(found, "offsets", len(data))[:, None]
        inside = (row >= 0) & (row < shape[0]) & (column < shape[1])
        row, column, data = row[inside], column[inside], data[inside]
    elif kind == "coo":
        if "coords" in found and found["coords"].ndim == 2 and len(found["coords"]) == 2:
            found["row"], found["col"] = found["coords"]
        row, column = _whole(found, "row", len(data)), _whole(found, "col", len(data))
    else:
        first, minor = _whole(found, "indptr"), _whole(found, "indices", len(data))
        high, wide = data.shape[1:] if kind == "bsr" else (1, 1)
        length = int(shape[1] if kind == "csc" else shape[0])
        if len(first) == 0 or (len(first) - 1) * high != length or first[0] != 0 or first.max() > len(minor):
            raise ValueError(
                f"indptr has {len(first)} numbers, which do not part {len(minor)} indices into {length} rows"
            )
        if (np.diff(first) < 0).any() or not ((minor >= 0) & (minor < shape.max())).all():
            raise ValueError("indptr decreases, or an index lies outside the matrix")
        major = np.repeat(np.arange(len(first) - 1), np.diff(first))
        minor, data = minor[: len(major)], data[: len(major)]
        row, column = (minor, major) if kind == "csc" else (major, minor)
        if kind == "bsr":
            row = np.broadcast_to(row[:, None, None] * high + np.arange(high)[:, None], data.shape).ravel()
            column = np.broadcast_to(column[:, None, None] * wide + np.arange(wide), data.shape).ravel()
            data = data.ravel()
    if not ((row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])).all():
        raise ValueError(f"an index lies outside the matrix of {shape[0]} × {shape[1]}")
    return sp.coo_array((data, (row, column)), shape=(int(shape[0]), int(shape[1])))


def _whole(found: dict[str, NDArray[Any]], key: str, length: int | None = None) -> NDArray[np.int64]:
    """One of the arrays, which must be a row of `length` whole numbers."""
    if key not in found:
        raise ValueError(f"{key} is missing")
    array = found[key]
    if array.dtype.kind not in "iu" or array.ndim != 1 or length not in (None, len(array)):
        wanted = "a row of" if length is None else str(length)
        raise ValueError(f"{key} has dtype {array.dtype} and shape {array.shape}; it must be {wanted} whole numbers")
    return array.astype(np.int64)


def is_scipy(path: Path) -> bool:
    """Whether an .npz holds what SciPy writes, by the names in it."""
    try:
        with ZipFile(path) as archive:
            return {"format.npy", "shape.npy", "data.npy"} <= set(archive.namelist())
    except Exception:  # no archive, or none that can be read: the package's own reader says so
        return False
