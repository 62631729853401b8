"""What fuzz.py draws from: near misses by grammar, and good files changed in their bytes, their JSON or their tensors."""

from __future__ import annotations

import io
import json
import re
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

ODD_NUMBERS = "0 1 -1 2 .5 0.499 1e-9 1e-320 nan inf -inf 1e400 1e308 9007199254740993 1_0 0x1 ١ 3 12 .999 1e-3 +1 -0"
NUMBERS = st.sampled_from(re.split(" ", ODD_NUMBERS)) | st.floats(width=64).map(repr)
NAMES = st.sampled_from(
    ["a", "b", "c", "d", "0", "1", "2", "3", "", " ", "#", '"', "a,b", "\u2028", "\x1b[2J", "é", "-1"]
) | st.text(max_size=4)
LINE = st.tuples(NAMES, NAMES, NUMBERS | NAMES).map(list) | st.lists(NAMES | NUMBERS, max_size=5)
HEADERS = st.sampled_from(
    ["", "source,target,value\n", "source,target,count\n", "from,to,probability\n", "value,to,from\n", "\ufeff"]
)
GOOD_LIST = "a,a,0.5\na,b,0.5\nb,a,0.49\nb,b,0.49\nb,c,0.02\nc,d,1\nd,c,0.99\nd,a,0.01\n"
ANY_BYTES = st.binary(max_size=200)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**12, -1, 2**63, 10**400])
)
JSON = st.recursive(
    SCALAR, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=6), x, max_size=3), max_leaves=6
)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from(["i8", "i4", "u1", "f8", "f4", "?", "U3", "O", "c16", ">i8", "S2", "M8[s]", "V4"])


def changed(data: st.DataObject, content: bytes, other: bytes = b"") -> bytes:
    """`content` with a few of its bytes changed, cut, doubled or exchanged for some of `other`."""
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(result) - 1)))
        length = data.draw(st.integers(0, 12))
        kind = data.draw(st.sampled_from(["flip", "cut", "end", "double", "insert", "other"]))
        if kind == "flip" and result:
            result[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del result[at : at + length]
        elif kind == "end":
            del result[at:]
        elif kind == "double":
            result[at:at] = result[at : at + length]
        elif kind == "insert":
            result[at:at] = data.draw(st.binary(max_size=12))
        else:
            result[at:at] = other[:length]
    return bytes(result)


def array(data: st.DataObject) -> np.ndarray:
    """A small array of any shape, dtype and values."""
    shape, dtype = data.draw(SHAPES), data.draw(DTYPES)
    fill = data.draw(st.sampled_from([0, 1, -1, 2**62, 3]) | st.integers(0, 40))
    kind = np.dtype(dtype)
    values = np.full(shape, fill).astype(kind) if kind.kind in "iufcb?" else np.zeros(shape, kind)
    return values if kind.kind != "u" else values % 7


def exchanged(data: st.DataObject, value: Any) -> Any:
    """JSON with one of its parts exchanged."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        if not data.draw(st.integers(0, 6)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: exchanged(data, value[key])}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], exchanged(data, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and data.draw(st.booleans()):
        return value + data.draw(st.sampled_from([1, -1, 10**6, 10**12, -(10**12)]))
    return data.draw(JSON)


def tensors(data: st.DataObject, content: bytes) -> bytes:
    """A safetensors file with one tensor exchanged, dropped, added, or some of its numbers made hostile."""
    found, meta = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__")
    key = data.draw(st.sampled_from(sorted(found) or ["x"]))
    kind = data.draw(st.sampled_from(["value", "shape", "dtype", "drop", "add", "meta"]))
    if kind == "value" and key in found and found[key].numel():
        flat = found[key].clone().reshape(-1)
        whole, odd = st.sampled_from([0, 1, -1, 7, 2**40]), st.sampled_from([0.5, float("nan"), float("inf"), 1e38])
        flat[data.draw(st.integers(0, flat.numel() - 1))] = data.draw(odd if flat.is_floating_point() else whole)
        found[key] = flat.reshape(found[key].shape)
    elif kind == "shape":
        found[key] = torch.zeros(data.draw(SHAPES))
    elif kind == "dtype" and key in found:
        found[key] = found[key].to(data.draw(st.sampled_from([torch.float16, torch.float64, torch.int32, torch.uint8])))
    elif kind == "drop":
        found.pop(key, None)
    elif kind == "add":
        found[data.draw(st.text(max_size=5))] = torch.zeros(2)
    elif meta and "json" in meta:
        meta = {"json": json.dumps(exchanged(data, json.loads(meta["json"])))}
    return save(found, meta)


WORDS = st.sampled_from(
    [
        "node",
        "edge",
        "graph",
        "key",
        "data",
        "port",
        "hyperedge",
        "default",
        "directed",
        "undirected",
        "weight",
        "cluster",
        "epsilon",
        "hard",
        "d0",
        "d1",
        "d2",
        "d3",
        "true",
        "false",
        "boolean",
        "int",
        "long",
        "float",
        "double",
        "string",
        "all",
        "yfiles",
    ]
)


def xml(data: st.DataObject, content: bytes) -> bytes:
    """XML with a few of its elements changed, dropped, doubled or moved; at times with a DOCTYPE."""
    root = ElementTree.fromstring(content)
    for _ in range(data.draw(st.integers(0, 3))):
        parents = [element for element in root.iter() if len(element)]
        if not parents:
            break
        parent = data.draw(st.sampled_from(parents))
        at = data.draw(st.integers(0, len(parent) - 1))
        element, text = parent[at], data.draw(NUMBERS | NAMES | WORDS)
        kind = data.draw(st.sampled_from(["text", "attribute", "attribute", "tag", "drop", "double", "move"]))
        if kind == "text":
            element.text = text
        elif kind == "attribute" and element.attrib:
            element.set(data.draw(st.sampled_from(sorted(element.attrib))), text)
        elif kind == "tag":
            element.tag = element.tag.rpartition("}")[0] + "}" + data.draw(WORDS)
        elif kind == "drop":
            parent.remove(element)
        elif kind == "double":
            parent.append(element)
        elif len(element) or element is not parent[-1]:
            parent.remove(element)
            parents[0].append(element)
    head = data.draw(
        st.sampled_from([""] * 9 + ["<!DOCTYPE graphml>", '<!DOCTYPE g [<!ENTITY a "b">]>', "<?x y?>", "\ufeff"])
    )
    return head.encode() + ElementTree.tostring(root).replace(b"\x00", b"")


def arrays(data: st.DataObject, content: bytes) -> bytes:
    """An .npz with one to three of its arrays exchanged, dropped or with a number made hostile."""
    with np.load(io.BytesIO(content)) as file:
        found: dict[str, Any] = dict(file)
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(found) or ["data"]))
        kind = data.draw(st.sampled_from(["array", "value", "value", "value", "size", "drop"]))
        if kind == "drop":
            found.pop(key, None)
        elif kind == "value" and key in found and found[key].size and found[key].dtype.kind in "ifb":
            values = found[key].copy().reshape(-1)
            odd = (
                [0.5, 0.02, -1.0, float("nan"), float("inf"), 1e-320]
                if values.dtype.kind == "f"
                else [0, 1, -1, 3, 2**30]
            )
            values[data.draw(st.integers(0, values.size - 1))] = data.draw(st.sampled_from(odd))
            found[key] = values.reshape(found[key].shape)
        elif kind == "size" and key in found and found[key].ndim:
            found[key] = found[key][: data.draw(st.integers(0, len(found[key])))]
        else:
            found[data.draw(st.sampled_from([key, "format", "shape", "coords", "../../x"]))] = array(data)
    buffer = io.BytesIO()
    (np.savez if data.draw(st.booleans()) else np.savez_compressed)(buffer, **found)
    return buffer.getvalue()


MARKET = [
    ["%%MatrixMarket"] * 9 + ["%%matrixmarket", "%MatrixMarket", "", "%%NIST"],
    ["matrix"] * 9 + ["vector", "Matrix", ""],
    ["coordinate"] * 5 + ["array"] * 3 + ["doublecoordinate", ""],
    ["real"] * 5 + ["complex", "integer", "pattern", "unsigned-integer", "double", ""],
    ["general"] * 6 + ["symmetric", "skew-symmetric", "hermitian", ""],
]
SIZES = ["1", "2", "3", "4"] * 3 + ["8", "0", "-1", "1000000000", "1" + "0" * 12, "1" + "0" * 30, "1.5", "x", ""]


def market(data: st.DataObject) -> bytes:
    """A Matrix Market file by grammar."""
    banner = " ".join(data.draw(st.sampled_from(words)) for words in MARKET)
    sizes = " ".join(data.draw(st.lists(st.sampled_from(SIZES), min_size=2, max_size=3)))
    number, whole = NUMBERS | st.sampled_from(["0.98", "0.02", "1", "1.0"]), st.sampled_from(SIZES)
    lines = data.draw(
        st.lists(st.tuples(whole, whole, number) | st.tuples(number) | st.lists(number, max_size=4), max_size=9)
    )
    comment = data.draw(st.sampled_from(["", "", "% text\n", "\n", "%" * 3000 + "\n"]))
    text = f"{banner}\n{comment}{sizes}\n" + "".join(" ".join(line) + "\n" for line in lines)
    return text.replace("\n", data.draw(st.sampled_from(["\n", "\n", "\r\n"]))).encode("utf-8", "surrogatepass")


CELLS = st.sampled_from(
    [0.5, 0.02, 0.98, 1, 0, -1, True, None, float("nan"), "0.5", "a", "b", 10**400, 1j, (), [1], "", b"a"]
)


def frame(data: st.DataObject, columns: dict[str, list[Any]]) -> Any:
    """A pandas table: cells, columns and their kinds exchanged."""
    columns = {name: list(cells) for name, cells in columns.items()}
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(columns) or ["x"]))
        kind = data.draw(st.sampled_from(["cell", "cell", "cell", "all", "drop", "name"]))
        if kind == "cell" and columns.get(name):
            columns[name][data.draw(st.integers(0, len(columns[name]) - 1))] = data.draw(CELLS | NAMES)
        elif kind == "all" and name in columns:
            columns[name] = [data.draw(CELLS)] * len(columns[name])
        elif kind == "drop":
            columns.pop(name, None)
        elif name in columns:
            columns[data.draw(st.sampled_from(["count", "probability", "source", "state"]))] = columns.pop(name)
    table = pandas.DataFrame(columns)
    if len(table.columns) and not data.draw(st.integers(0, 4)):
        kind = data.draw(
            st.sampled_from(["string", "category", "Float64", "Int64", "complex128", "datetime64[ns]", "boolean"])
        )
        name = data.draw(st.sampled_from(list(table.columns)))
        with suppress(TypeError, ValueError, OverflowError):
            table[name] = table[name].astype(kind)
    if len(table.columns) and not data.draw(st.integers(0, 9)):
        table = pandas.concat([table, table.iloc[:, :1]], axis=1)
    return table.head(data.draw(st.sampled_from([99] * 9 + [0])))
