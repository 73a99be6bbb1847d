"""PQPP's files, and the correlations of a score with them."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from modeling_asymvlm.evaluation.query_performance import (
    RELEVANCES,
    JudgedQueries,
    query_performance_metrics,
    read_judged_queries,
)


FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "pqpp"
HEADER = f"id,image_id,best_caption,{','.join(RELEVANCES)}\n"
needs_files = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files of PQPP are not in ../shared/data/pqpp")


@needs_files
def test_the_number_of_words_correlates_as_is_known():
    queries = read_judged_queries(FOLDER / "test.csv")
    words = [len(text.split()) for text in queries.texts]
    found = query_performance_metrics(words, queries)["clip_pk"]
    assert found["pearson"] == pytest.approx(-0.160, abs=5e-4)
    assert found["kendall"] == pytest.approx(-0.131, abs=5e-4)


@needs_files
@pytest.mark.parametrize(("split", "size"), [("train", 6000), ("validation", 2000), ("test", 2000)])
def test_every_file_is_read_whole(split, size):
    queries = read_judged_queries(FOLDER / f"{split}.csv")
    assert {len(queries.texts), len(queries.image_ids), *map(len, queries.relevance.values())} == {size}
    average = (queries.relevance["clip_rr"] + queries.relevance["blip2_rr"]) / 2
    np.testing.assert_allclose(queries.relevance["retrieval_avg_rr"], average, atol=1e-9)


def test_correlations_are_those_of_pairs_counted_one_by_one():
    random = np.random.default_rng(0)
    judged = {name: random.integers(0, 6, 40) / 5 for name in RELEVANCES}
    queries = JudgedQueries(["text"] * 40, ["0"] * 40, judged)
    score = random.integers(0, 9, 40).astype(float)
    found = query_performance_metrics(score, queries)
    for name, values in judged.items():
        signs = [np.sign(np.subtract.outer(array, array))[np.triu_indices(40, 1)] for array in (score, values)]
        tau = (signs[0] * signs[1]).sum() / np.sqrt(np.square(signs[0]).sum() * np.square(signs[1]).sum())
        assert found[name]["kendall"] == pytest.approx(tau)
        assert found[name]["pearson"] == pytest.approx(scipy.stats.pearsonr(score, values).statistic)
    with pytest.raises(ValueError, match=r"`score` \(39,\), `relevance` \(40,\)"):
        query_performance_metrics(score[1:], queries)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,image_id,best_caption\n", "has no column 'clip_rr'; it has id, image_id, best_caption"),
        (HEADER, "holds no queries"),
        (HEADER + "1,2,red," + ",".join(["0.5"] * 5) + ",1.5\n", "row 2: retrieval_avg_pk is '1.5', but must be"),
        (
            HEADER + "1,2,red,," + ",".join(["0.5"] * 5) + "\n",
            "row 2: clip_rr is '', but must be a number from 0 to 1",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(content, message, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_judged_queries(tmp_path / "a.csv")
