"""Edge lists: what they mean by hand, every error with its line, the round trip."""

import numpy as np
import pytest

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.formats.edge_list import find_threshold, read_edge_list, write_edge_list
from mcot_torch.graphs.puzzles import tower_of_hanoi

# Two clusters {a, b} and {c, d}; hard steps b -> c (.02) and d -> a (.01).
NAMED = """a,a,0.5
a,b,0.5
b,a,0.49
b,b,0.49
b,c,0.02
c,d,1
d,c,0.99
d,a,0.01
"""
KERNEL = [[0.5, 0.5, 0, 0], [0.49, 0.49, 0.02, 0], [0, 0, 0, 1], [0.01, 0, 0.99, 0]]


@pytest.fixture
def write(tmp_path):
    def write(content, name="graph.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def message_of(path, *arguments):
    with pytest.raises(InputError) as error:
        read_edge_list(path, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what a file means ----------------------------------------------------------------------------------------------


def check(graph):
    assert graph.names == ("a", "b", "c", "d")
    assert graph.clusters.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(graph.kernel(), KERNEL, rtol=1e-15)
    assert graph.epsilon == 0.02
    assert graph.sparse_edges.tolist() == [[1, 2], [3, 0]]
    np.testing.assert_allclose(graph.weights[graph.hard], [1.0, 0.5], rtol=1e-15)
    assert graph.entries.tolist() == [0, 2]


def test_probabilities(write):
    check(read_edge_list(write(NAMED)))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("source,target,probability\n" + NAMED, "g.csv"),
        ("From , To, Value\n" + NAMED, "g.csv"),
        ("# a comment\n\n   \n" + NAMED.replace("\n", "\n\n#, x\n"), "g.csv"),
        (NAMED.replace(",", "\t"), "g.tsv"),
        (NAMED.replace(",", "\t"), "g.txt"),
        (NAMED.replace(",", ";"), "g.dat"),
        (NAMED.replace(",", "  "), "g"),
        (NAMED.replace(",", " , "), "g.csv"),
        (NAMED.replace("\n", "\r\n"), "g.csv"),
        (NAMED.replace("\n", "\r"), "g.csv"),
        ("\ufeff" + NAMED, "g.csv"),
        ('"a","a",0.5\n' + NAMED.split("\n", 1)[1], "g.csv"),
        (NAMED.rstrip("\n"), "g.csv"),
        (NAMED + "c,a,0\nzzz,a,0.0\n", "g.csv"),  # lines of value 0 are skipped
        (
            "note,value,target,source\n"
            + "".join(f"x,{v},{t},{s}\n" for s, t, v in (line.split(",") for line in NAMED.split())),
            "g.csv",
        ),
    ],
)
def test_the_same_graph_written_otherwise(write, content, name):
    check(read_edge_list(write(content, name)))


def test_counts(write):
    counts = "a,a,50\na,b,50\nb,a,49\nb,b,49\nb,c,2\nc,d,7\nd,c,198\nd,a,2\n"
    check(read_edge_list(write(counts)))
    check(read_edge_list(write("source,target,count\n" + counts)))


def test_counts_of_one_need_the_header(write):
    rows = "a,a,1\na,b,1\nb,a,1\nb,c,1\nc,d,1\nd,c,1\nd,a,1\n"
    clusters = write("a,x\nb,x\nc,y\nd,y\n", "clusters.csv")
    graph = read_edge_list(write("source,target,counts\n" + rows), clusters)
    assert graph.kernel()[0, :2].tolist() == [0.5, 0.5]
    assert "sum to 2; they must sum to 1: add what is missing, or, if these are counts" in message_of(
        write(rows), clusters
    )


def test_integer_states_keep_their_numbers(write):
    graph = read_edge_list(write("3,2,.99\n3,1,.01\n2,3,1\n1,0,.98\n1,2,.02\n0,1,1\n"))
    assert graph.names is None
    assert graph.clusters.tolist() == [0, 0, 1, 1]
    assert graph.kernel()[3].tolist() == [0, 0.01, 0.99, 0]
    gap = read_edge_list(write("7,2,.99\n7,1,.01\n2,7,1\n1,0,.98\n1,2,.02\n0,1,1\n"))
    assert gap.names == ("7", "2", "1", "0")


def test_rows_are_renormalised(write):
    graph = read_edge_list(write("0,0,.3333333\n0,1,.6666666\n1,0,.99\n1,2,.01\n2,2,.99\n2,0,.01\n"))
    np.testing.assert_allclose(graph.kernel()[0, :2], [1 / 3, 2 / 3], rtol=1e-7)
    np.testing.assert_allclose(graph.kernel().sum(axis=1), 1, rtol=1e-15)


def test_cluster_file(write):
    # the step a -> b is rare and stays easy, the step c -> a is frequent and is hard: the file decides
    content = write("a,a,.98\na,b,.01\na,c,.01\nb,a,1\nc,c,.7\nc,a,.3\n")
    graph = read_edge_list(content, write("state,cluster\n# which is which\nc,right\na,left\nb,left\n", "k.csv"))
    assert graph.names == ("a", "b", "c")
    assert graph.clusters.tolist() == [1, 1, 0]  # by first line of the cluster file
    assert graph.epsilon == 0.3
    assert graph.kernel()[0, 1] == pytest.approx(0.01)
    numbered = read_edge_list(content, write("c,0\na,1\nb,1\n", "k.csv"))
    assert numbered.clusters.tolist() == [1, 1, 0]


def test_threshold(write):
    # three levels: .9, .1 and .001
    rows = "a,b,.9\na,a,.1\nb,b,.9\nb,a,.099\nb,c,.001\nc,c,.999\nc,a,.001\n"
    assert read_edge_list(write(rows), None, 0.01).clusters.tolist() == [0, 0, 1]
    cut_high = message_of(write(rows), None, 0.5)
    assert (
        "the step a -> b has probability 0.9, which is not below the threshold 0.5, yet no such steps lead" in cut_high
    )
    assert "still hang together in one cluster" in message_of(write(rows), None, 0.0005)


def test_a_rare_step_inside_a_cluster_stays_easy(write):
    rows = "a,a,.499\na,b,.5\na,c,.001\nb,a,.999\nb,b,.001\nc,c,.999\nc,a,.001\n"
    graph = read_edge_list(write(rows), None, 0.01)
    assert graph.sparse_edges.tolist() == [[0, 2], [2, 0]]
    assert graph.kernel()[1, 1] == pytest.approx(0.001, rel=1e-12)


def test_find_threshold():
    assert find_threshold(np.array([0.5, 0.25, 0.25, 1e-4])) == pytest.approx(0.005)  # sqrt(.25 · 1e-4)
    with pytest.raises(InputError, match="differ by at most a factor 4, a clear gap is 5 or more; give threshold"):
        find_threshold(np.array([0.8, 0.2, 0.1]))
    with pytest.raises(InputError, match="the two largest gaps are factors 100 and 50; give threshold"):
        find_threshold(np.array([0.5, 0.005, 0.0001]))
    with pytest.raises(InputError, match="at most a factor 1,"):
        find_threshold(np.array([0.5, 0.5]))


# ---- the round trip -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    "graph",
    [
        clustered_graph(4, 8, 0.002, weights=[1.0, 0.3, 1 / 7]),
        clustered_graph(4, 8, 1e-13),
        tower_of_hanoi(4, 2, 1e-3),
    ],
)
def test_round_trip(tmp_path, graph, suffix):
    edges, clusters = tmp_path / f"edges.{suffix}", tmp_path / f"clusters.{suffix}"
    write_edge_list(graph, edges, clusters)
    back = read_edge_list(edges, clusters)
    np.testing.assert_allclose(back.kernel(), graph.kernel(), rtol=1e-15, atol=0)
    assert np.array_equal(back.clusters, graph.clusters)
    assert np.array_equal(back.entries, graph.entries)
    assert back.names == graph.names
    without = read_edge_list(edges)
    np.testing.assert_allclose(without.kernel(), graph.kernel(), rtol=1e-15, atol=0)
    assert np.array_equal(without.hard, graph.hard)
    assert len(list(tmp_path.iterdir())) == 2


def test_round_trip_of_awkward_names(tmp_path):
    graph = clustered_graph(2, 4, shape="ring", degree=3)
    names = ("a,b", 'say "x"', "c\td", "e;f", "g h", "i'j", "ε", "-1")
    graph = type(graph)(**{**vars_of(graph), "names": names})
    write_edge_list(graph, tmp_path / "g.csv", tmp_path / "k.csv")
    back = read_edge_list(tmp_path / "g.csv", tmp_path / "k.csv")
    assert back.names == names
    np.testing.assert_allclose(back.kernel(), graph.kernel(), rtol=1e-15)


def vars_of(graph):
    return {key: getattr(graph, key) for key in graph.__dataclass_fields__}


@pytest.mark.parametrize("name", ["", " a", "#a", "a\nb"])
def test_names_that_an_edge_list_cannot_hold(tmp_path, name):
    graph = clustered_graph(2, 2, shape="ring", degree=1)
    graph = type(graph)(**{**vars_of(graph), "names": (name, "b", "c", "d")})
    with pytest.raises(InputError, match="cannot stand in an edge list; rename the state"):
        write_edge_list(graph, tmp_path / "g.csv")
    assert list(tmp_path.iterdir()) == []


# ---- errors ---------------------------------------------------------------------------------------------------------

THREE = "1,2,.5\n2,1,.5\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (THREE + "3,9,-0.2\n", " line 3: probability -0.2 of edge 3 -> 9; probabilities lie in (0, 1]"),
        (THREE + "3,9,nan\n", " line 3: probability nan of edge 3 -> 9; probabilities lie in (0, 1]"),
        (
            "# x\n\n" + THREE + "3,9,1.5\n",
            " line 5: count 1.5 of edge 3 -> 9; a file with values above 1 holds counts, which are",
        ),
        (
            THREE + "3,9,12\n",
            " line 1: count 0.5 of edge 1 -> 2; a file with values above 1 holds counts, which are whole "
            "numbers up to 2^53, not probabilities in (0, 1]; line 3 holds 12, so these are counts",
        ),
        ("1,2,5\n2,1,-3\n", " line 2: count -3 of edge 2 -> 1"),
        ("1,2,5\n2,1,inf\n", " line 2: count inf of edge 2 -> 1"),
        ("1,2,5\n2,1,1e300\n", " line 2: count 1e+300 of edge 2 -> 1"),
        ("1,2,5\n2,1,nan\n", " line 2: count nan of edge 2 -> 1"),
        ("source,target,probability\n1,2,5\n", " line 2: probability 5 of edge 1 -> 2; probabilities lie in (0, 1]"),
        ("source,target,count\n1,2,.5\n", " line 2: count 0.5 of edge 1 -> 2"),
        (THREE + "1,2\n", " line 3: 2 column(s); a line holds source, target and value"),
        ("1;2;.5\n", " line 1: 1 column(s)"),
        (THREE + "1,,0.1\n", " line 3: a state without a name"),
        (
            THREE + "1,3,a tenth\n",
            " line 3: value 'a tenth' of edge 1 -> 3 is not a number; a header, if there is one, names",
        ),
        ("from,to,weight\n" + THREE, " line 1: value 'weight' of edge from -> to is not a number; a header"),
        (THREE + "1,2,.5\n", " line 3: edge 1 -> 2 stands in line 1 already; keep one"),
        ('1,2,.5\n2,"1,.5\n', " line 2: not a row of a table (unexpected end of data)"),
        ("1,2," + "9" * 200_000 + "\n", " line 1: not a row of a table (field larger than field limit"),
        ("", ": no edges; a line holds source, target and value"),
        ("# nothing\n1,2,0\n", ": no edges"),
        (b"\xff\xfe1\x00,\x002\x00", ": not a text file in UTF-8; export the table as CSV or TSV"),
        (b"\x89PNG\r\n\x1a\n\x00", ": not a text file in UTF-8"),
        (b"a,b\x00,1\n", ": not a text file in UTF-8"),
        (
            "a,b,.5\na,a,.4\nb,a,1\n",
            ": the probabilities of the steps out of state a sum to 0.9; they must sum to 1: add",
        ),
        ("a,b,.5\na,c,.5\nb,a,1\n", " line 2: no step leads out of state c; add one, or remove the steps into it"),
        ("a,b,1\nb,a,1\n", ": no clear gap between easy and hard steps: neighbouring probabilities differ by at most"),
        (
            "a,b,.999\na,a,.001\nb,a,1\n",
            ": with the steps below 0.0316 cut the states still hang together in one cluster",
        ),
        (
            "a,a,.99\na,b,.01\nb,b,1\n",
            ": the graph has a part that cannot be left: 1 state(s) from which the rest is out of reach, state b",
        ),
        (
            "a,a,.998\na,b,.001\na,c,.001\nb,b,1\nc,a,.001\nc,b,.999\n",
            ": the step c -> b has probability 0.999, which is not below",
        ),
    ],
)
def test_errors(write, content, message):
    path = write(content)
    assert message_of(path).startswith(f"{path}{message}")


def test_no_file(tmp_path):
    assert message_of(tmp_path / "none.csv") == f"{tmp_path / 'none.csv'}: no such file"
    assert "cannot be read" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ("a,x\nb,x\nc,y\n", "k.csv: state d of "),
        ("a,x\nb,x\nc,y\nd,y\ne,y\n", "k.csv line 5: state e has no steps in "),
        ("a,x\nb,x\nc,y\nd,y\na,y\n", "k.csv line 5: state a stands twice; keep one line"),
        ("a\n", "k.csv line 1: a line holds state and cluster"),
        ("a,\n", "k.csv line 1: a line holds state and cluster"),
        (
            "a,x\nb,x\nc,x\nd,x\n",
            "graph.csv: no step joins two clusters; a graph needs at least 2, joined by hard steps",
        ),
        (
            "a,x\nb,x\nc,y\nd,z\n",
            "graph.csv: every step out of state c leads to another cluster; a state needs an easy step",
        ),
        ("a,x\nb,y\nc,y\nd,y\n", "graph.csv: cluster 1 is not connected by its dense edges: state c and state b"),
        (b"\x00", "k.csv: not a text file in UTF-8"),
    ],
)
def test_cluster_file_errors(write, clusters, message):
    assert message in message_of(write(NAMED), write(clusters, "k.csv"))


def test_threshold_errors(write):
    path = write(NAMED)
    assert message_of(path, None, 1.5).startswith("threshold is 1.5; it is a probability a step and must lie in (0, 1)")
    assert message_of(path, path, 0.1).startswith("threshold and clusters_path are both given")
