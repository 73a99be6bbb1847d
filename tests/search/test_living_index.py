"""Galleries that live: appended, replaced and removed rows give what a new index gives; metadata choose rows."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F


pytest.importorskip("faiss")

from modeling_asymvlm.search import living_index, row_table  # noqa: E402
from modeling_asymvlm.search.image_index import ImageIndex  # noqa: E402
from modeling_asymvlm.search.index_search import SearchableIndex
from modeling_asymvlm.search.text_index import TextIndex
from tests.search.test_corrected_search import DIM, FakeCalibration, cosines_of, statistics
from tests.search.test_index_files import make_model, make_split, same_results


TAU = 2.5
CHANGES = 3000
KINDS = ("texts", "images", "corrected images")


def empty(kind: str, law: str = "power_spherical", calibration: FakeCalibration | None = None) -> SearchableIndex:
    if kind == "texts":
        return TextIndex(DIM, distribution=law, logit_scale=TAU)
    if kind == "corrected images":
        calibration = (calibration or FakeCalibration(1.2, 0.6)).of(law, TAU)
        return ImageIndex(DIM, distribution=law, logit_scale=TAU, calibration=calibration)
    return ImageIndex(DIM, distribution=law, logit_scale=TAU)


def drawn(generator: np.random.Generator, rows: int) -> torch.Tensor:
    lengths = generator.uniform(1, 40, (rows, 1))
    directions = F.normalize(torch.from_numpy(generator.normal(size=(rows, DIM))), dim=1)
    return (torch.from_numpy(lengths) * directions).float()


def living(kind: str, rows: int = 30) -> SearchableIndex:
    index = empty(kind)
    columns = {"year": list(range(2000, 2000 + rows)), "tag": ["even", "odd"] * (rows // 2)}
    index.add(drawn(np.random.default_rng(7), rows), [f"row {row}" for row in range(rows)], columns)
    return index


def agree(found, expected):
    """The same labels, scores and probabilities, whatever the numbers of rows."""
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-13, atol=1e-13)  # kappa rounds by its place
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-14)
    np.testing.assert_allclose(found.log_posterior, expected.log_posterior, rtol=1e-6, atol=1e-4)
    for name in ("confidence", "presence"):
        own, its = getattr(found, name), getattr(expected, name)
        assert (own is None) == (its is None)
        if own is not None:
            np.testing.assert_allclose(own, its, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "law", "seed"),
    [(kind, law, seed) for seed, (kind, law) in enumerate(itertools.product(KINDS, ("vmf", "power_spherical")))],
)
def test_thousands_of_random_changes_give_the_index_built_anew(kind, law, seed, tmp_path):
    generator = np.random.default_rng(seed)
    calibration = FakeCalibration(1.2, 0.6)
    index, kept, numbers = empty(kind, law, calibration), {}, itertools.count()
    queries = drawn(generator, 5)
    for change in range(CHANGES):
        action = generator.choice(["add", "upsert", "remove"], p=[0.3, 0.3, 0.4]) if len(kept) > 20 else "add"
        some = int(generator.integers(1, 6))
        known = list(generator.choice(list(kept), some, replace=False)) if len(kept) > 20 else []
        if action == "remove":
            index.remove([str(label) for label in known])
            for label in known:
                del kept[str(label)]
        else:
            new = [f"label {next(numbers)}" for _ in range(some)]
            labels = new if action == "add" else [*map(str, known), *new[: some // 2]]
            rows, years = drawn(generator, len(labels)), generator.integers(1990, 2030, len(labels)).tolist()
            (index.add if action == "add" else index.upsert)(rows, labels, {"year": years})
            kept.update(zip(labels, zip(rows, years, strict=True), strict=True))
        assert len(index) == len(kept)
        if change % 1000 == 777:
            index.compact()
        if change % 1000 == 555:
            index.save(tmp_path / "index")
            options = {"calibration": calibration} if kind == "corrected images" else {}
            index = type(index).load(tmp_path / "index", **options)
        if change % 100:
            continue
        rebuilt = empty(kind, law, calibration)
        rebuilt.add(
            torch.stack([row for row, _ in kept.values()]), list(kept), {"year": [year for _, year in kept.values()]}
        )
        for options in ({}, {"where": pc.field("year") >= 2000}):
            k = min(7, len(kept))
            expected = rebuilt.search(queries, k, **options)
            agree(index.search(queries, k, **options), expected)
        if kind == "corrected images" and len(index) > 1:
            np.testing.assert_allclose(calibration.seen, statistics(cosines_of(index, queries)), rtol=0, atol=1e-12)
            extent = index._summary.evidence_range
            assert extent[0] <= index.evidence.min() and index.evidence.max() <= extent[1]
        assert dict(zip(index.labels.to_pylist(), index.metadata["year"].to_pylist(), strict=True)) == {
            label: year for label, (_, year) in kept.items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_a_removal_moves_no_more_rows_than_it_removes(kind):
    index = living(kind)
    before = {label: vector.copy() for label, vector in zip(index.labels.to_pylist(), index.vectors, strict=True)}
    index.remove(["row 3", "row 29", "row 11"])
    labels = index.labels.to_pylist()
    assert labels == [f"row {row}" for row in (0, 1, 2, 27, *range(4, 11), 28, *range(12, 27))]
    for label, vector in zip(labels, index.vectors, strict=True):
        np.testing.assert_array_equal(vector, before[label])
    assert index.metadata["year"].to_pylist() == [2000 + int(label[4:]) for label in labels]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_can_go_and_come_again(kind):
    index = living(kind)
    queries = drawn(np.random.default_rng(1), 3)
    expected = index.search(queries, 30)
    index.remove(index.labels.to_pylist())
    assert len(index) == 0 == len(index.labels)
    with pytest.raises(ValueError, match="k is 1, but the index holds 0 rows"):
        index.search(queries, 1)
    index.add(drawn(np.random.default_rng(7), 30), [f"row {row}" for row in range(30)])
    agree(index.search(queries, 30), expected)
    assert index.metadata["year"].null_count == 30


def test_one_label_removes_all_of_its_rows():
    index = empty("texts")
    index.add(drawn(np.random.default_rng(2), 6), ["a", "b", "a", "c", "a", "b"])
    index.remove(["a", "a"])
    assert sorted(index.labels.to_pylist()) == ["b", "b", "c"]
    index.upsert(drawn(np.random.default_rng(3), 2), ["b", "d"])
    assert sorted(index.labels.to_pylist()) == ["b", "c", "d"]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_that_were_lent_do_not_change(kind):
    index = living(kind)
    vectors, expected = index.vectors, index.vectors.copy()
    index.remove(["row 0"])
    index.upsert(drawn(np.random.default_rng(4), 1), ["row 1"])
    index.compact()
    np.testing.assert_array_equal(vectors, expected)


def test_compaction_gives_memory_back_and_sums_anew():
    index = living("corrected images")
    index.remove([f"row {row}" for row in range(5)])
    assert index._summary.num_removed == 5
    before = index.search(drawn(np.random.default_rng(1), 3), 20)
    memory = index._faiss
    index.compact()
    assert index._faiss is not memory and index._summary.num_removed == 0
    assert index._summary.evidence_range.tolist() == [index.evidence.min(), index.evidence.max()]
    same_results(before, index.search(drawn(np.random.default_rng(1), 3), 20))


def test_moments_are_summed_anew_once_more_was_removed_than_is_there():
    index = living("corrected images")
    index.remove([f"row {row}" for row in range(10)])
    assert index._summary.num_removed == 10
    index.remove([f"row {row}" for row in range(10, 17)])
    assert index._summary.num_removed == 0 and index._summary.num_images == 13


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        (pc.field("year") >= 2020, range(20, 30)),
        ((pc.field("tag") == "odd") & (pc.field("year") < 2006), (1, 3, 5)),
        (pc.field("label").isin(["row 4", "row 9"]), (4, 9)),
        (~pc.match_substring(pc.field("tag"), "d"), range(0, 30, 2)),
    ],
)
def test_where_lists_rows_that_fulfil_a_condition(kind, condition, allowed):
    index, queries = living(kind), drawn(np.random.default_rng(5), 4)
    whole, found = index.search(queries, 30), index.search(queries, 30, where=condition)
    assert found.rows.shape == (4, len(allowed)) and found.proven.all()
    for query in range(4):
        kept = np.isin(whole.rows[query], list(allowed))
        assert found.rows[query].tolist() == whole.rows[query][kept].tolist()
        np.testing.assert_allclose(found.log_posterior[query], whole.log_posterior[query][kept], rtol=1e-6)


def test_where_knows_the_uncertainty_of_texts():
    index, queries = living("texts"), drawn(np.random.default_rng(5), 4)
    both = index.search(queries, 30, where=(pc.field("uncertainty") <= 0.1) & (pc.field("tag") == "odd"))
    assert {label for labels in both.labels for label in labels} == {
        f"row {row}" for row in range(1, 30, 2) if 1 / index.concentration[row] <= 0.1
    }
    expected = index.search(queries, 30, where=(0.02, 0.1))
    found = index.search(queries, 30, where=(pc.field("uncertainty") >= 0.02) & (pc.field("uncertainty") <= 0.1))
    same_results(found, expected)


def test_what_is_missing_fulfils_nothing():
    index = living("images")
    index.add(drawn(np.random.default_rng(6), 2), ["new 1", "new 2"], {"place": ["here", None]})
    assert index.metadata.column_names == ["year", "tag", "place"]
    queries = drawn(np.random.default_rng(5), 1)
    assert index.search(queries, 5, where=pc.field("place") == "here").labels == [["new 1"]]
    assert index.search(queries, 32, where=pc.field("place") != "there").labels == [["new 1"]]
    assert len(index.search(queries, 32, where=pc.field("year").is_null()).labels[0]) == 2


@pytest.mark.parametrize("memory_map", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_metadata_are_saved(kind, memory_map, tmp_path):
    index, queries = living(kind), drawn(np.random.default_rng(5), 4)
    index.save(tmp_path / "index")
    loaded = type(index).load(tmp_path / "index", memory_map=memory_map)
    assert loaded.metadata.equals(index.metadata)
    condition = pc.field("tag") == "odd"
    same_results(index.search(queries, 5, where=condition), loaded.search(queries, 5, where=condition))
    loaded.save(tmp_path / "index")
    assert type(index).load(tmp_path / "index").metadata.equals(index.metadata)


@pytest.mark.parametrize("kind", [TextIndex, ImageIndex])
def test_splits_carry_metadata_and_are_no_longer_those_of_an_edited_index(kind, tmp_path):
    model, first, second = make_model(), make_split(1), make_split(2)
    rows = 80 if kind is TextIndex else 40
    index = kind.from_split(model, first, batch_size=7, metadata={"number": np.arange(rows)})
    index.add_split(model, second, batch_size=7, metadata=pa.table({"number": np.arange(rows)}))
    assert index.metadata["number"].to_pylist() == 2 * list(range(rows))
    with pytest.raises(ValueError, match=f"The metadata have 3 values for {rows} embeddings"):
        index.add_split(model, second, metadata={"number": [1, 2, 3]})
    index.save(tmp_path / "index")
    kind.load(tmp_path / "index", splits=[first, second])
    index.remove([index.labels[0].as_py()])
    index.save(tmp_path / "index")
    for splits in ([first, second], [second], []):
        with pytest.raises(ValueError, match="built from other features or labels"):
            kind.load(tmp_path / "index", splits=splits)


def test_many_small_additions_are_joined(monkeypatch):
    monkeypatch.setattr(row_table, "MAX_PIECES", 8)
    index = empty("images")
    for row in range(50):
        index.add(drawn(np.random.default_rng(row), 1), [f"row {row}"], {"number": [row]})
        assert index.labels.num_chunks <= 8
    assert index.metadata["number"].to_pylist() == list(range(50))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda index: index.remove(["row 1", "row 30", "row 31"]), ValueError, "label 'row 30', nor 1 others"),
        (lambda index: index.remove("row 1"), TypeError, "are one string, 'row 1'"),
        (lambda index: index.remove(["row 1", 2]), TypeError, "Label 1 is of type int"),
        (lambda index: index.upsert(torch.ones(2, DIM), ["a", "a"]), ValueError, "label 'a' is given 2 times"),
        (lambda index: index.upsert(torch.ones(2, DIM), ["row 1"]), ValueError, "1 labels for 2 embeddings"),
        (lambda index: index.upsert(torch.ones(1, 3), ["row 1"]), ValueError, r"got \(1, 3\)"),
        (lambda index: index.upsert(torch.ones(1, DIM) * torch.nan, ["row 1"]), ValueError, "NaN"),
        (lambda index: index.add(torch.ones(2, DIM), None, {"year": [1]}), ValueError, "1 values for 2 embeddings"),
        (
            lambda index: index.add(torch.ones(1, DIM), None, {"year": ["x"]}),
            ValueError,
            "another type.*int64 vs string",
        ),
        (lambda index: index.add(torch.ones(1, DIM), None, {"label": ["x"]}), ValueError, "column 'label', which"),
        (lambda index: index.add(torch.ones(1, DIM), None, {"uncertainty": [1]}), ValueError, "column 'uncertainty'"),
        (lambda index: index.add(torch.ones(2, DIM), None, {"a": [1, "x"]}), ValueError, "are no table"),
        (lambda index: index.add(torch.ones(2, DIM), None, {"a": [1, 2], "b": [1]}), ValueError, "are no table"),
        (lambda index: index.search(torch.ones(1, DIM), 1, where=pc.field("size") > 1), ValueError, r"year \(int64\)"),
        (
            lambda index: index.search(torch.ones(1, DIM), 1, where=pc.field("year") == "x"),
            ValueError,
            "cannot be decided",
        ),
        (lambda index: index.search(torch.ones(1, DIM), 1, where=pc.field("year")), ValueError, "is of type int64"),
        (lambda index: index.search(torch.ones(1, DIM), 1, where=pc.field("year") < 0), ValueError, "No row fulfils"),
        (
            lambda index: index.search(torch.ones(1, DIM), 1, where=pc.field("year") > 0, method="bound"),
            ValueError,
            "cannot filter",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_changes_are_refused_and_leave_the_index_alone(kind, change, error, message):
    index, queries = living(kind), drawn(np.random.default_rng(5), 4)
    expected, metadata = index.search(queries, 30), index.metadata
    with pytest.raises(error, match=message):
        change(index)
    same_results(index.search(queries, 30), expected)
    assert index.metadata.equals(metadata) and living_index.EDITED not in index.split_fingerprints


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapped_index_does_not_change(kind, tmp_path):
    living(kind).save(tmp_path / "index")
    calibration = {"calibration": FakeCalibration(1.2, 0.6)} if kind == "corrected images" else {}
    mapped = type(living(kind)).load(tmp_path / "index", memory_map=True, **calibration)
    for change in (
        lambda: mapped.remove(["row 1"]),
        lambda: mapped.upsert(torch.ones(1, DIM), ["row 1"]),
        mapped.compact,
    ):
        with pytest.raises(ValueError, match="cannot change: load it with memory_map=False"):
            change()
    assert len(mapped) == 30
