"""Rows in a table of LanceDB: the results of the index in memory, proven; changes, conditions and refusals."""

import numpy as np
import pyarrow as pa
import pytest
import torch


pytest.importorskip("faiss")
lancedb = pytest.importorskip("lancedb")

from modeling_asymvlm.search import lance_index  # noqa: E402
from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402
from modeling_asymvlm.search.text_index import TextIndex  # noqa: E402
from tests.search.test_corrected_search import LAWS, FakeCalibration, calibration_of  # noqa: E402
from tests.search.test_corrected_search import make_model as corrected_model  # noqa: E402
from tests.search.test_corrected_search import make_split as corrected_split  # noqa: E402
from tests.search.test_index_files import make_model, make_split  # noqa: E402
from tests.search.test_refine import DIM, KINDS, make  # noqa: E402


def stored(kind: str, law: str, tmp_path, rows: int = 3000):
    """An index in memory with metadata, its table, and queries."""
    index, queries = make(kind, law, rows=rows)
    blank = index._blank()
    blank.add(
        torch.from_numpy(index.vectors[:, :DIM].copy()),
        [f"row '{row}'" for row in range(rows)],
        {"year": np.arange(rows) % 100, "tag": ["even", "odd"] * (rows // 2)},
    )
    return blank, blank.to_lancedb(str(tmp_path), "gallery"), queries


def agree(found, expected):
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-14)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_table_gives_the_results_of_the_index_and_proves_them(kind, law, tmp_path, monkeypatch):
    monkeypatch.setattr(lance_index, "QUERIES_AT_A_TIME", 7)
    monkeypatch.setattr(lance_index, "ROWS_AT_A_TIME", 1000)
    index, table, queries = stored(kind, law, tmp_path)
    opened = type(index).from_lancedb(str(tmp_path), "gallery")
    expected = index.search(queries, 10)
    for each in (table, opened):
        found = each.search(queries, 10, posterior=True)
        assert len(each) == len(index) and found.proven.all()
        agree(found, expected)
        np.testing.assert_allclose(found.log_posterior, expected.log_posterior, rtol=1e-5, atol=1e-4)
    assert found.presence is None and opened.search(queries, 10).log_posterior is None


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_are_applied_before_the_search(kind, tmp_path):
    index, table, queries = stored(kind, "power_spherical", tmp_path, rows=1000)
    found = table.search(queries, 5, where="year >= 98 AND tag = 'odd'", posterior=True)
    whole = index.search(queries, 1000)
    for query in range(len(queries)):
        kept = np.isin(whole.rows[query] % 100, [99])
        assert found.labels[query] == [f"row '{row}'" for row in whole.rows[query][kept][:5]]
        np.testing.assert_allclose(
            found.log_posterior[query], whole.log_posterior[query][kept][:5], rtol=1e-5, atol=1e-4
        )
    assert found.proven.all()
    few = table.search(queries, 50, where="year = 7")
    assert few.scores.shape == (len(queries), 10) and few.proven.all()
    for where, message in (("year > 100", "No row fulfils"), ("size > 1", "No field named size")):
        with pytest.raises(ValueError, match=message):
            table.search(queries, 5, where=where)
    if kind == "texts":
        sure = table.search(queries, 3, where="concentration >= 40")
        assert (sure.uncertainty <= 1 / 40).all()


@pytest.mark.parametrize("kind", KINDS)
def test_changes_give_the_changed_index(kind, tmp_path):
    index, table, queries = stored(kind, "power_spherical", tmp_path, rows=400)
    generator = torch.Generator().manual_seed(3)
    other = type(index).from_lancedb(str(tmp_path), "gallery")
    for each in (index, table):
        if isinstance(each, lance_index.LanceIndex) and kind == "corrected images":
            each._template.calibration = index.calibration
        each.remove([f"row '{row}'" for row in range(0, 400, 3)])
        new = 30 * torch.randn(40, DIM, generator=generator.manual_seed(3))
        each.upsert(new, [f"row '{row}'" for row in range(385, 425)], {"year": [7] * 40})
    assert len(table) == len(index) and len(other) == 400
    agree(table.search(queries, 10), index.search(queries, 10))
    assert table.search(queries, 10).proven.all()
    other.refresh()
    agree(other.search(queries, 10), index.search(queries, 10))
    assert other.table.count_rows("tag IS NULL") == 40


def test_a_query_without_proof_is_tried_again_and_said_to_be_unproven(tmp_path):
    index = TextIndex(DIM, distribution="power_spherical")
    eta = 20 * torch.nn.functional.normalize(torch.randn(1, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    index.add(torch.cat([eta.repeat(500, 1), -eta.repeat(100, 1)]), [str(row) for row in range(600)])
    found = index.to_lancedb(str(tmp_path), "gallery").search(eta, 3)
    assert not found.proven.any() and not found.exact
    np.testing.assert_allclose(found.scores, index.search(eta, 3).scores)


@pytest.mark.parametrize("kind", [TextIndex, ImageIndex])
def test_tables_of_another_head_kind_or_calibration_are_refused(kind, tmp_path):
    model = make_model()
    kind.from_split(model, make_split()).to_lancedb(str(tmp_path), "gallery")
    kind.from_lancedb(str(tmp_path), "gallery", model=model)
    with pytest.raises(ValueError, match="built by another model"):
        kind.from_lancedb(str(tmp_path), "gallery", model=make_model(seed=1))
    other = ImageIndex if kind is TextIndex else TextIndex
    with pytest.raises(ValueError, match=f"but one of {other.kind}s and format 1 is wanted"):
        other.from_lancedb(str(tmp_path), "gallery")
    lancedb.connect(str(tmp_path)).create_table("foreign", pa.table({"label": ["a"]}))
    with pytest.raises(ValueError, match="holds no index of format None"):
        kind.from_lancedb(str(tmp_path), "foreign")
    with pytest.raises(ValueError, match="Table 'gone' was not found"):
        kind.from_lancedb(str(tmp_path), "gone")
    with pytest.raises(ValueError, match="no new table 'gallery'"):
        kind.from_split(model, make_split()).to_lancedb(str(tmp_path), "gallery")


def test_a_calibration_goes_with_its_table(tmp_path):
    model = corrected_model()
    calibration = calibration_of(model)
    index = ImageIndex.from_split(model, corrected_split(1), calibration=calibration)
    index.to_lancedb(str(tmp_path), "gallery")
    opened = ImageIndex.from_lancedb(str(tmp_path), "gallery", model=model, calibration=calibration)
    queries = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found, expected = opened.search(queries, 5, posterior=True), index.search(queries, 5)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)
    with pytest.raises(ValueError, match="made with another calibration"):
        ImageIndex.from_lancedb(str(tmp_path), "gallery", calibration=FakeCalibration(1.3, 0.4, identity="two"))
    with pytest.raises(ValueError, match="load it with calibration="):
        ImageIndex.from_lancedb(str(tmp_path), "gallery").upsert(torch.ones(1, 8), ["a"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda table: table.remove(["row '1'", "gone"]), ValueError, "No row has the label 'gone', nor 0 others"),
        (lambda table: table.remove("row '1'"), TypeError, "are one string"),
        (lambda table: table.upsert(torch.ones(2, DIM), ["a", "a"]), ValueError, "'a' is given 2 times"),
        (lambda table: table.upsert(torch.ones(1, 3), ["a"]), ValueError, r"got \(1, 3\)"),
        (
            lambda table: table.upsert(torch.ones(1, DIM), ["a"], {"size": [1]}),
            ValueError,
            "column 'size', but",
        ),
        (lambda table: table.upsert(torch.ones(1, DIM), ["a"], {"year": ["x"]}), ValueError, "another type.*'x'"),
        (lambda table: table.search(torch.ones(1, DIM), 101), ValueError, "k is 101, but the table holds 100 rows"),
        (lambda table: table.search(torch.ones(1, 3), 1), ValueError, r"got \(1, 3\)"),
    ],
)
def test_bad_changes_and_searches_are_refused(change, error, message, tmp_path):
    _, table, queries = stored("texts", "vmf", tmp_path, rows=100)
    expected = table.search(queries, 5)
    with pytest.raises(error, match=message):
        change(table)
    assert len(table) == 100
    agree(table.search(queries, 5), expected)


def test_what_a_table_cannot_hold_is_refused(tmp_path):
    index = ImageIndex(DIM, distribution="vmf")
    index.add(torch.ones(2, DIM), ["a", "a"])
    with pytest.raises(ValueError, match="label 'a' is that of 2 rows"):
        index.to_lancedb(str(tmp_path), "gallery")
    index = ImageIndex(DIM, distribution="vmf")
    index.add(torch.ones(1, DIM), ["a"], {"vector": [1]})
    with pytest.raises(ValueError, match="column 'vector', which the table needs"):
        index.to_lancedb(str(tmp_path), "gallery")


def test_an_empty_table_fills(tmp_path):
    table = TextIndex(DIM, distribution="power_spherical").to_lancedb(str(tmp_path), "gallery")
    with pytest.raises(ValueError, match="the table holds 0 rows"):
        table.search(torch.ones(1, DIM), 1)
    table.upsert(torch.ones(2, DIM) * torch.tensor([[1.0], [2.0]]), ["a", "b"])
    assert table.search(torch.ones(1, DIM), 2).labels == [["b", "a"]]
    table.remove(["a", "b"])
    assert len(table) == 0
