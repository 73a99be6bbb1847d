"""Ranks both ways and recall, against sorting every row and column."""

import statistics

import numpy as np
import pytest
import torch

from modeling_asymvlm.evaluation import (
    EmbeddingScores,
    RetrievalRanks,
    rank_both_ways,
    recall_at_k,
    retrieval_metrics,
)
from modeling_asymvlm.evaluation import ranks as ranks_module
from modeling_asymvlm.model.objective import pair_scores
from tests.support.retrieval_cases import best_first, brute_force_ranks, random_case


def assert_same_ranks(ranks, expected):
    for name in RetrievalRanks.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(ranks, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("distinct", [1, 2, 5, 10**6])
@pytest.mark.parametrize("tile_size", [1, 7, 47, 1024])
def test_ranks_match_sorting_every_row_and_column(distinct, tile_size):
    for seed in range(5):
        scores, index = random_case(seed, distinct=distinct)
        expected = brute_force_ranks(scores, index)
        assert expected.num_images_without_captions >= 2
        assert_same_ranks(rank_both_ways(scores, index, tile_size=tile_size), expected)
        blockwise = rank_both_ways(lambda rows, scores=scores: scores[rows], index, num_images=13, tile_size=tile_size)
        assert_same_ranks(blockwise, expected)


def test_ranks_are_int64():
    ranks = rank_both_ways(*random_case(0))
    arrays = [value for value in vars(ranks).values() if isinstance(value, np.ndarray)]
    assert [array.dtype for array in arrays] == [np.int64] * 5


def test_own_rank_is_the_place_in_a_stable_argsort():
    scores, index = random_case(3)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = rank_both_ways(scores, index)
    np.testing.assert_array_equal(np.take_along_axis(order, ranks.text_to_image_rank[:, None], 1)[:, 0], index)
    np.testing.assert_array_equal(order[:, 0], ranks.text_to_image_top)


def test_infinite_scores_have_a_rank():
    scores, index = random_case(1)
    scores[scores == 0] = -np.inf
    scores[scores == 1] = np.inf
    scores[:, 4] = -np.inf
    scores[5] = -np.inf
    assert_same_ranks(rank_both_ways(scores, index, tile_size=10), brute_force_ranks(scores, index))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_every_float_type(dtype):
    scores, index = random_case(2)
    tensor = torch.tensor(scores, dtype=dtype, requires_grad=True)
    expected = brute_force_ranks(scores, index)
    assert_same_ranks(rank_both_ways(tensor, torch.tensor(index)), expected)
    assert_same_ranks(rank_both_ways(lambda rows: tensor[rows], index, num_images=13, tile_size=9), expected)


def test_nested_lists_and_read_only_arrays():
    scores, index = random_case(4)
    expected = brute_force_ranks(scores, index)
    assert_same_ranks(rank_both_ways(scores.tolist(), index.tolist()), expected)
    scores.flags.writeable = False
    assert_same_ranks(rank_both_ways(scores, index), expected)


def test_each_block_is_scored_at_most_twice():
    scores, index = random_case(0)
    calls = []

    def score(rows):
        calls.append((rows.start, rows.stop))
        return scores[rows]

    rank_both_ways(score, index, num_images=13, tile_size=20)
    assert sorted(calls) == [(0, 20), (0, 20), (20, 40), (20, 40), (40, 47), (40, 47)]


def test_one_text_and_one_image():
    ranks = rank_both_ways([[0.5]], [0])
    assert recall_at_k(ranks, (1,)) == {"text_to_image_recall@1": 1.0, "image_to_text_recall@1": 1.0}


def test_nan_scores_are_counted():
    scores, index = random_case(0)
    scores[3, 4] = scores[40, 0] = scores[46, 12] = np.nan
    with pytest.raises(ValueError, match=r"3 of 611 scores are NaN"):
        rank_both_ways(scores, index, tile_size=10)


def test_scores_that_change_between_calls_are_refused():
    scores, index = random_case(0)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="other values for rows 0 to 46"):
        rank_both_ways(lambda rows: scores[rows] + generator.normal(size=(47, 13)), index, num_images=13)


@pytest.mark.parametrize(
    ("scores", "index", "options", "message"),
    [
        (np.zeros((3, 2)), [0, 1], {}, r"`scores` has shape \(3, 2\); it must be \(2, images\)"),
        (np.zeros((2, 3)), [0, 1], {"num_images": 4}, r"`scores` has shape \(2, 3\); it must be \(2, 4\)"),
        (np.zeros(2), [0, 1], {}, r"`scores` has shape \(2,\)"),
        (np.zeros((2, 3), int), [0, 1], {}, "dtype int64; they must be floating-point"),
        (np.zeros((2, 3)), [0, 3], {}, "runs from 0 to 3; allowed is 0 to 2"),
        (np.zeros((2, 3)), [-1, 0], {}, "runs from -1 to 0; allowed is 0 to 2"),
        (np.zeros((2, 3)), [0.0, 1.0], {}, "dtype float64; it must be a non-empty vector of integers"),
        (np.zeros((2, 3)), [[0, 1]], {}, r"`text_image_index` has shape \(1, 2\)"),
        (np.zeros((0, 3)), [], {}, r"`text_image_index` has shape \(0,\)"),
        (np.zeros((2, 3)), [0, 1], {"tile_size": 0}, "`tile_size` is 0; it must be at least 1"),
        (lambda rows: np.zeros((2, 3)), [0, 1], {}, "`num_images` is None"),
        (lambda rows: np.zeros((2, 3)), [0, 1], {"num_images": 4}, r"have shape \(2, 3\)"),
        (lambda rows: np.zeros((1, 3)), [0, 1], {"num_images": 3}, r"have shape \(1, 3\)"),
    ],
)
def test_bad_scores_and_indices_are_refused(scores, index, options, message):
    with pytest.raises(ValueError, match=message):
        rank_both_ways(scores, index, **options)


def test_recall_and_median_rank_count_queries():
    for seed in range(10):
        scores, index = random_case(seed, distinct=50)
        expected = {}
        ranks = brute_force_ranks(scores, index)
        for k in (1, 2, 5, 10):
            found = [index[text] in best_first(list(scores[text]))[:k] for text in range(47)]
            expected[f"text_to_image_recall@{k}"] = sum(found) / 47
            queries = sorted(set(index.tolist()))
            found = [any(index[text] == image for text in best_first(list(scores[:, image]))[:k]) for image in queries]
            expected[f"image_to_text_recall@{k}"] = sum(found) / len(queries)
        expected["text_to_image_median_rank"] = statistics.median(ranks.text_to_image_rank.tolist()) + 1
        expected["image_to_text_median_rank"] = statistics.median(ranks.image_to_text_rank.tolist()) + 1
        assert retrieval_metrics(scores, index, ks=(1, 2, 5, 10), tile_size=11) == expected
        blockwise = retrieval_metrics(lambda rows, scores=scores: scores[rows], index, ks=(1, 2, 5, 10), num_images=13)
        assert blockwise == expected


def test_recall_names_and_limits():
    ranks = rank_both_ways(*random_case(0))
    names = [f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert list(recall_at_k(ranks)) == names
    assert set(recall_at_k(ranks, (47,)).values()) == {1.0}
    with pytest.raises(ValueError, match=r"`ks` is \(1, 0\)"):
        recall_at_k(ranks, (1, 0))


def embedding_case(seed, num_texts=700, num_images=140, dim=24, decimals=None):
    """Embeddings whose scores are tied where they are rounded to few decimals; some images have no caption."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, dim, generator=generator)
    index = torch.randint(0, num_images - 5, (num_texts,), generator=generator)
    texts = images[index] + 2 * torch.randn(num_texts, dim, generator=generator)
    if decimals is not None:
        images, texts = (torch.round(embeds, decimals=decimals) for embeds in (images, texts))
    return texts, images, index


@pytest.mark.parametrize("decimals", [None, 0])
@pytest.mark.parametrize("tile_size", [None, 97])
def test_embeddings_give_the_ranks_of_their_score_matrix(decimals, tile_size):
    for law in (None, "vmf", "power_spherical"):
        texts, images, index = embedding_case(3, decimals=decimals)
        score = None if law is None else lambda t, i, law=law: pair_scores(t, i, distribution=law)
        scores = EmbeddingScores(texts, images, score)
        blocks = [scores(slice(start, start + (tile_size or 1024))) for start in range(0, 700, tile_size or 1024)]
        expected = brute_force_ranks(torch.cat(blocks).numpy(), index.numpy())
        assert_same_ranks(rank_both_ways(scores, index, tile_size=tile_size), expected)


def test_embeddings_are_scored_once_and_own_pairs_besides():
    texts, images, index = embedding_case(0)
    computed = []

    def score(text_block, image_block):
        computed.append(len(text_block) * len(image_block))
        return text_block @ image_block.T

    rank_both_ways(EmbeddingScores(texts, images, score), index, tile_size=100)
    assert sum(computed) < 1.5 * 700 * 140


@pytest.mark.parametrize("limit", ["TOLERANCE", "MAX_UNDECIDED"])
def test_where_one_pass_does_not_decide_a_second_one_does(monkeypatch, limit):
    texts, images, index = embedding_case(1, decimals=0)
    drift = iter(range(10**6))

    def score(text_block, image_block):  # blocks of another shape give other scores, by more than the tolerance
        shift = 0.0 if len(text_block) == 700 or limit == "MAX_UNDECIDED" else 1.0 + next(drift)
        return text_block @ image_block.T + shift

    monkeypatch.setattr(ranks_module, limit, 0)
    expected = brute_force_ranks((texts @ images.T).numpy(), index.numpy())
    assert_same_ranks(rank_both_ways(EmbeddingScores(texts, images, score), index, tile_size=700), expected)


def test_embeddings_may_be_arrays_lists_or_half_precision():
    texts, images, index = embedding_case(2, num_texts=60, num_images=20, dim=4, decimals=0)
    expected = retrieval_metrics((texts @ images.T).numpy(), index)
    frozen = images.numpy().copy()
    frozen.flags.writeable = False
    for text_embeds, image_embeds in (
        (texts.numpy(), frozen),
        (texts.tolist(), images.tolist()),
        (texts.half(), images.bfloat16()),
        (texts.double().requires_grad_(), images),
    ):
        assert retrieval_metrics(EmbeddingScores(text_embeds, image_embeds), index) == expected


def test_embeddings_with_nan_or_of_another_number_are_refused():
    texts, images, index = embedding_case(2, num_texts=60, num_images=20)
    with pytest.raises(ValueError, match=r"`scores` has shape \(60, 20\); it must be \(59, images\)"):
        rank_both_ways(EmbeddingScores(texts, images), index[:59])
    texts[3, 1] = float("nan")
    with pytest.raises(ValueError, match="20 of 1200 scores are NaN"):
        rank_both_ways(EmbeddingScores(texts, images), index)


def test_all_scores_equal():
    index = np.arange(40) % 8
    expected = brute_force_ranks(np.zeros((40, 8)), index)
    assert_same_ranks(rank_both_ways(EmbeddingScores(np.zeros((40, 3), "f4"), np.ones((8, 3), "f4")), index), expected)
