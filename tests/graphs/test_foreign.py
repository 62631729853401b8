"""Files of other tools as strangers write them: what fuzzing found (tools/fuzz.py), bombs, and every kind that is right."""

from __future__ import annotations

import io
import re
import warnings
import zipfile

import numpy as np
import pytest
from scipy import io as scipy_io
from scipy import sparse as sp

from mcot_torch.errors import InputError
from mcot_torch.graphs.formats import interchange as f
from mcot_torch.graphs.formats.checked import read_matrix_market, read_scipy

SUMS = "every row must sum to 1: divide counts by their row sums"


def refused(path):
    """The one line about a file, without its name; nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as error:
            f.load_graph(path)
    name, _, rest = str(error.value).partition(": ")
    assert name == str(path)
    assert "\n" not in rest
    return rest


def graphml(graph_data="", edge="0.98", doctype=""):
    """Two states, two clusters; the probability of a's stay, data of the graph, what stands before it."""
    edges = [("a", "a", edge), ("a", "b", "0.02"), ("b", "a", "0.02"), ("b", "b", "0.98")]
    return (
        f'<?xml version="1.0"?>{doctype}<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
        '<key id="w" for="edge" attr.name="weight" attr.type="double"/>'
        '<key id="i" for="edge" attr.name="weight" attr.type="long"/>'
        '<key id="s" for="graph" attr.name="epsilon" attr.type="string"/>'
        '<key id="e" for="graph" attr.name="epsilon" attr.type="double"/>'
        f'<graph edgedefault="directed">{graph_data}<node id="a"/><node id="b"/>'
        + "".join(
            f'<edge source="{x}" target="{y}"><data key="{"i" if len(p) > 99 else "w"}">{p}</data></edge>'
            for x, y, p in edges
        )
        + "</graph></graphml>"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge": "1" + "0" * 400}, "edge a -> a has weight 1" + "0" * 39 + "; its attribute 'weight' is the probability"),
        ({"edge": "nan"}, "edge a -> a has weight nan; its attribute 'weight' is the probability of the step, in [0, 1]"),
        ({"edge": "0.9"}, f"row 0 of the kernel sums to 0.92; {SUMS}"),
        ({"graph_data": '<data key="s">large</data>'}, "epsilon is 'large'; it is a probability a step and must lie in"),
        ({"graph_data": '<data key="e">0</data>'}, "epsilon is 0.0; it is a probability a step and must lie in (0, 1)"),
        ({"graph_data": '<data key="e">1e-320</data>'}, "edge a -> b has weight inf; weights are positive and finite"),
        ({"graph_data": '<node id="c"/>'}, f"row 0 of the kernel sums to 0; {SUMS}, and give every state a step"),
    ],
)  # fmt: skip
def test_crafted_graphml(options, message, tmp_path):
    pytest.importorskip("networkx")
    path = tmp_path / "g.graphml"
    path.write_text(graphml())
    assert f.load_graph(path).epsilon == 0.02
    path.write_text(graphml(**options))
    assert refused(path).startswith(message)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    ("declared", "name"),
    [
        (f'<!ENTITY l0 "ha">{LAUGHS}', "l0"),  # a billion laughs
        (f'<!ENTITY a "{"a" * 50_000}">', "a"),  # quadratic: a long one, named often
        ('<!ENTITY x SYSTEM "file:///etc/passwd">', "x"),
        ('<!ENTITY % p SYSTEM "http://localhost/evil.dtd"> %p;', "p"),
        ("<!ENTITY % p \"<!ENTITY q SYSTEM 'file:///etc/passwd'>\"> %p;", "p"),
    ],
)
def test_xml_entities_are_refused_unread(declared, name, tmp_path):
    pytest.importorskip("networkx")
    path = tmp_path / "g.graphml"
    for body in ("", f"<data key='s'>{f'&{name};' * 2000}</data>"):
        path.write_text(graphml(body, doctype=f"<!DOCTYPE graphml [{declared}]>"))
        expected = f"declares the XML entity {name}; write out what it stands for and drop the DOCTYPE"
        assert refused(path) == expected
    path.write_text(graphml(doctype="<!DOCTYPE graphml>"))  # it declares nothing
    assert f.load_graph(path).n_states == 2
    path.write_text(graphml(doctype='<!DOCTYPE graphml SYSTEM "http://localhost/none.dtd">'))  # nor is it fetched
    assert f.load_graph(path).n_states == 2
    path.write_text(graphml("<data key='s'>&undeclared;</data>"))
    assert refused(path).startswith("not a readable .graphml file (undefined entity")


COORDINATE = "%%MatrixMarket matrix coordinate real general\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # what SciPy's reader writes out of its arrays for, or takes memory for
        ("%%MatrixMarket matrix array real symmetric\n2 3\n1\n2\n3\n4\n5\n", "its line of sizes is '2 3', which fits no"),
        ("%%MatrixMarket matrix array real skew-symmetric\n1 1\n1\n", "its first line is '%%MatrixMarket matrix array real skew"),
        ("%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 0\n", "its first line is '%%MatrixMarket matrix coord"),
        (COORDINATE + "1 1 1000000000000\n1 1 1\n", "its sizes ask for 1,000,000,000,000 lines of 3 number(s), and 1 of 3"),
        ("%%MatrixMarket matrix array real general\n99999 99999\n1\n", "its sizes ask for 9,999,800,001 lines of 1 number(s)"),
        (COORDINATE + "2 2 1\n", "its sizes ask for 1 lines of 3 number(s), and 0 of "),
        (COORDINATE + "2 2 1\n1 1\n", "its sizes ask for 1 lines of 3 number(s), and 1 of 2 follow"),
        (COORDINATE + "2 2 2\n1 1 1\n2 3 1\n", "entry 2 stands in row 2, column 3 of 2 × 2"),
        (COORDINATE + "2 2 1\n0 1 1\n", "entry 1 stands in row 0, column 1 of 2 × 2"),
        (COORDINATE + "2 2 1\n1 1.5 1\n", "entry 1 stands in row 1, column 1.5 of 2 × 2"),
        (COORDINATE + "2 2 1\nnan 1 1\n", "entry 1 stands in row nan, column 1 of 2 × 2"),
        (COORDINATE + "2 -2 1\n1 1 1\n", "its line of sizes is '2 -2 1', which fits no matrix coordinate real general"),
        (COORDINATE + "1_0 2 1\n1 1 1\n", "its line of sizes is '1_0 2 1', which fits no matrix coordinate real general"),
        (COORDINATE, "its line of sizes is '', which fits no matrix coordinate real general"),
        (COORDINATE + "2 2 1\n1 1 x\n", "could not convert string 'x' to float64"),
    ],
)  # fmt: skip
def test_crafted_matrix_market(text, message, tmp_path):
    path = tmp_path / "g.mtx"
    path.write_text(text)
    assert refused(path).startswith(f"not a readable .mtx file ({message}")


def test_a_header_may_claim_any_number_of_states(tmp_path):
    """A row of each would take gibibytes: that one is empty is told from the entries alone."""
    path = tmp_path / "g.mtx"
    path.write_text(COORDINATE + "1000000000000 1000000000000 2\n1 1 1\n3 1 1\n")
    assert refused(path) == f"row 1 of the kernel sums to 0; {SUMS}, and give every state a step"
    path.write_text("%%MatrixMarket matrix array real general\n0 0\n")
    assert refused(path) == "a kernel is a square matrix with one row a state; this has the shape (0, 0)"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["dense", "sparse", "pattern"])
def test_every_kind_of_matrix_market(symmetric, kind, tmp_path):
    rng = np.random.default_rng(3)
    matrix = rng.random((5, 5)) * (rng.random((5, 5)) < 0.7)
    matrix = matrix + matrix.T if symmetric else matrix[:4]
    matrix = (matrix > 0).astype(float) if kind == "pattern" else matrix
    written = matrix if kind == "dense" else sp.coo_array(matrix)
    options = {"symmetry": "symmetric" if symmetric else "general", "field": "pattern" if kind == "pattern" else None}
    scipy_io.mmwrite(tmp_path / "m.mtx", written, "a comment, Ünïcode\nof two lines", precision=17, **options)
    again = read_matrix_market(tmp_path / "m.mtx")
    assert np.array_equal(again if kind == "dense" else again.toarray(), matrix)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_every_format_of_scipy(kind, density, tmp_path):
    rng = np.random.default_rng(4)
    matrix = rng.random((4, 6)) * (rng.random((4, 6)) < density)
    for written in (
        sp.coo_array(matrix).asformat(kind),
        sp.coo_matrix(matrix).asformat(kind),
        sp.bsr_array(matrix, blocksize=(2, 3)),
    ):
        sp.save_npz(tmp_path / "m.npz", written)
        assert np.array_equal(read_scipy(tmp_path / "m.npz").toarray(), matrix)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("csr", {"indptr": [0, 10**9, 4]}, "indptr has 3 numbers, which do not part 4 indices into 2 rows"),
        ("csr", {"indptr": [0, 3, 2]}, "indptr decreases, or an index lies outside the matrix"),
        ("csr", {"indptr": [0]}, "indptr has 1 numbers, which do not part 4 indices into 2 rows"),
        ("csr", {"indices": [0, 1, 10**9, 1]}, "indptr decreases, or an index lies outside the matrix"),
        ("csc", {"indices": [0, 1, -1, 1]}, "indptr decreases, or an index lies outside the matrix"),
        ("csr", {"indices": [0, 1]}, "indices has dtype int64 and shape (2,); it must be 4 whole numbers"),
        ("csr", {"indices": [0.0, 1, 0, 1]}, "indices has dtype float64 and shape (4,); it must be 4 whole numbers"),
        ("csr", {"shape": [10**12, 10**12]}, "indptr has 3 numbers, which do not part 4 indices into 1000000000000 rows"),
        ("csr", {"shape": [2, 2, 2]}, "data has dtype float64 and 1 axes, and the matrix 3"),
        ("csr", {"data": np.full(4, 0.5 + 0j)}, "data has dtype complex128 and 1 axes, and the matrix 2"),
        ("csr", {"format": b"xyz"}, "its format is 'xyz'; csr, csc, coo, bsr, dia are read"),
        ("bsr", {"data": np.ones((1, 0, 0))}, "indptr has 2 numbers, which do not part 1 indices into 2 rows"),
        ("dia", {"offsets": [0]}, "offsets has dtype int64 and shape (1,); it must be 3 whole numbers"),
        ("coo", {"coords": [[0, 0, 1, 1], [0, 1, 0, 2**32]]}, "an index lies outside the matrix of 2 × 2"),  # 0 as 32 bits
        ("coo", {"row": None}, "row is missing"),
    ],
)  # fmt: skip
def test_crafted_scipy_files(kind, change, message, tmp_path):
    path = tmp_path / "g.scipy.npz"
    kernel = sp.coo_array(np.array([[0.98, 0.02], [0.02, 0.98]]))
    sp.save_npz(path, sp.bsr_array(kernel.tocsr(), blocksize=(2, 2)) if kind == "bsr" else kernel.asformat(kind))
    assert f.load_graph(path).epsilon == 0.02
    with np.load(path) as file:
        arrays = {**file, **{key: np.asarray(value) for key, value in change.items() if value is not None}}
    np.savez(path, **{key: value for key, value in arrays.items() if change.get(key, 0) is not None})
    assert refused(path) == f"not a readable .scipy.npz file ({message})"


def test_archives_that_are_none_or_bombs(tmp_path):
    path = tmp_path / "g.npz"
    sp.save_npz(path, sp.eye_array(3))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x09\x02"))  # still a zip by its end
    assert refused(path).startswith("not a readable graph file (")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("format.npy", "shape.npy"):
            archive.writestr(name, zipfile.ZipFile(io.BytesIO(content)).read(name))
        with archive.open("data.npy", "w", force_zip64=True) as file:
            for _ in range(401):
                file.write(bytes(2**20))
    assert refused(path) == "not a readable graph file (data unpacks to 420,478,976 bytes; 400,001,000 are the most)"


def test_crafted_tables():
    pandas = pytest.importorskip("pandas")
    steps = pandas.DataFrame(
        {"source": list("aabb"), "target": list("abba"), "probability": [0.98, 0.02, 0.98, 0.02]}, dtype=object
    )
    states = pandas.DataFrame({"state": ["a", "b"], "cluster": [0, 1]}, dtype=object)
    assert f.from_pandas(steps, states).n_clusters == 2
    for column, cell, kind in (
        ("source", float("nan"), "name"),
        ("target", None, "name"),
        ("target", [1], "name"),
        ("probability", "half", "number"),
        ("probability", 10**400, "number"),
        ("probability", np.complex128(0.98), "number"),
        ("probability", float("nan"), "number"),
    ):
        broken = steps.copy()
        broken.at[2, column] = cell
        message = f"row 2 of the table has the {column} {cell!r:.40}; it must be a {kind}"
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            f.from_pandas(broken, states)
    with pytest.raises(InputError, match=r"^row 1 of the table has the cluster nan; it must be a name$"):
        f.from_pandas(steps, states.assign(cluster=[0, float("nan")]))
    with pytest.raises(InputError, match=r"^the table has 2 columns called target; keep one$"):
        f.from_pandas(pandas.concat([steps, steps[["target"]]], axis=1), states)
    with pytest.raises(InputError, match=r"^the table of steps has no rows; it needs one for every step$"):
        f.from_pandas(steps.astype({"probability": complex}).head(0), states)
    with pytest.raises(InputError, match=r"^the kernel holds complex numbers; probabilities are real"):
        f.from_kernel(np.eye(2) * 1j)
