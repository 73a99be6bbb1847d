"""PQPP: how well a score of a text foretells how well people find its pictures.

Poesina et al., *PQPP: A joint benchmark for text-to-image prompt and query performance prediction*, CVPR 2025: 10,000
captions of COCO, each with the reciprocal rank and the precision at 10 of what CLIP and BLIP-2 retrieve among COCO's
images, judged relevant or not by people. `train.csv`, `validation.csv` and `test.csv` of its repository, CC BY 4.0.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..utils.extras import require
from .arrays import pearson, vectors


RELEVANCES = ("clip_rr", "clip_pk", "blip2_rr", "blip2_pk", "retrieval_avg_rr", "retrieval_avg_pk")


@dataclass(frozen=True)
class JudgedQueries:
    """
    The queries of a file of PQPP.

    Attributes:
        texts (`list[str]`): captions, as they stand in the file.
        image_ids (`list[str]`): the image of COCO that each was written for.
        relevance (`dict[str, np.ndarray]`):
            By a name of `RELEVANCES`, float64 of shape `(queries,)` in [0, 1]: reciprocal rank (`rr`) or precision at
            10 (`pk`) of what `clip`, `blip2` or both on average retrieve.
    """

    texts: list[str]
    image_ids: list[str]
    relevance: dict[str, npt.NDArray[np.float64]]


def read_judged_queries(path: str | Path) -> JudgedQueries:
    """
    Reads a file of PQPP.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: without queries, for a column that is missing, and for a value that is no number from 0 to 1.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("best_caption", "image_id", *RELEVANCES) if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{str(path)!r} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}."
            )
        rows = list(reader)
    if not rows:
        raise ValueError(f"{str(path)!r} holds no queries.")
    relevance = {name: _shares(path, name, [row[name] for row in rows]) for name in RELEVANCES}
    return JudgedQueries([row["best_caption"] for row in rows], [row["image_id"] for row in rows], relevance)


def query_performance_metrics(score: npt.ArrayLike, queries: JudgedQueries) -> dict[str, dict[str, float]]:
    """
    Correlations of a score of the texts, such as the concentration, with what is retrieved for them.

    Args:
        score (array of shape `(queries,)`): higher for texts that should be answered better; for an uncertainty the
            correlations have the other sign.
        queries (`JudgedQueries`): in the same order.

    Returns:
        By a name of `RELEVANCES`: `pearson` and `kendall` (tau-b), in [-1, 1], NaN where one side is constant.

    Raises:
        ValueError: for scores that are NaN, or not one for each query.
    """
    require("query_performance_metrics", "scipy")
    from scipy.stats import kendalltau

    found = {}
    for name, relevance in queries.relevance.items():
        scores, judged = vectors(score=score, relevance=relevance)
        found[name] = {"pearson": pearson(scores, judged), "kendall": float(kendalltau(scores, judged).statistic)}
    return found


def _shares(path: str | Path, name: str, values: list[str]) -> npt.NDArray[np.float64]:
    for line, value in enumerate(values, start=2):
        try:
            share = float(value)
        except (TypeError, ValueError):
            share = float("nan")
        if not 0 <= share <= 1:
            raise ValueError(f"{str(path)!r}, row {line}: {name} is {value!r}, but must be a number from 0 to 1.")
    return np.array(values, dtype=np.float64)
