"""Files that appear whole or not at all, and files that are read with suspicion.

A run folder may come from a stranger, a killed process or a full disk. So everything is written under a temporary name and
renamed, nothing is unpickled, and what a file claims is checked before memory is taken for it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, is_zipfile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcot_torch.errors import InputError

__all__ = [
    "READ_ERRORS",
    "digest",
    "read_arrays",
    "read_json",
    "read_tensors",
    "read_utf8",
    "refuse_links",
    "save_tensors",
    "tensor_shapes",
    "whole_file",
    "write_text",
]

READ_ERRORS = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError)
"""What a damaged or crafted safetensors or JSON file can raise while it is read."""

_LARGEST_JSON = 2**28  # bytes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place once the body has written it without an error.

    Raises:
        OSError: with `errno` and `filename`, which `cli/status.py` tells in one line; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # a link that lay there would lead the writing elsewhere
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a machine that goes down may keep the new name and lose what it names
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None  # a write knows no name
        raise


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; tensors are taken to the CPU, and those that share memory are written apart."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with whole_file(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as error:  # its message holds the operating system's number
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from None


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON in a file, which must be a `kind`; `InputError` names the file and what is wrong."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes are too many")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, kind):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}; it must be a {kind.__name__}")
    return value


def read_utf8(path: Path, cure: str) -> str:
    """The text of a file that a person made, without a byte order mark.

    Raises:
        InputError: a file that is missing, cannot be read or is no UTF-8; `cure` ends that last line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8; {cure}") from None


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype as safetensors writes it) of a file, from its header alone; raises `READ_ERRORS`."""
    with safe_open(path, "pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, which can hold no more than its own size; raises `READ_ERRORS`."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_arrays(path: Path, most: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, every one looked at before memory is taken for it.

    Args:
        path: the archive.
        most: name -> the most bytes that it may hold; no other name may stand in the archive.

    Returns:
        name -> array, of those that are there.

    Raises:
        InputError: one line with the file and the array. Nothing is unpickled, and a bomb is not unpacked.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such graph file" if not path.exists() else f"{path}: not a readable graph file")
    if not is_zipfile(path):
        raise InputError(f"{path}: not a readable graph file (not an .npz archive)")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key not in most or key in arrays or info.filename == key:
                    raise ValueError(f"an unexpected member {info.filename[:40]!r}")
                if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                    raise ValueError(f"{key} is packed by an unknown method")
                if info.file_size > most[key]:
                    raise ValueError(f"{key} unpacks to {info.file_size:,} bytes; {most[key]:,} are the most")
                with archive.open(info) as file:
                    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                    shape, fortran, dtype = read_header[npy.read_magic(file)](file)
                    size = math.prod(shape) * dtype.itemsize
                    if dtype.hasobject or min(shape, default=0) < 0 or size != info.file_size - file.tell():
                        raise ValueError(f"{key} is no plain array of the size that it claims")
                    arrays[key] = np.frombuffer(bytearray(file.read()), dtype).reshape(
                        shape, order="F" if fortran else "C"
                    )
    except Exception as error:  # a damaged archive raises a dozen kinds, zlib's and zipfile's own among them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable graph file ({reason})") from None
    return arrays


def digest(path: Path) -> str:
    """SHA-256 of a file in hex digits, "" where there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_links(folder: Path) -> None:
    """`InputError` if anything inside `folder` is a symbolic link: writing through it would leave the folder."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise InputError(f"{path} is a link out of the run folder; replace it by what it points to, or delete it")
