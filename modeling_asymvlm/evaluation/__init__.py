"""Retrieval, uncertainty and calibration metrics as plain functions of arrays.

Every array argument may be a NumPy array, a sequence or a torch tensor; nothing here knows a model. Recalls are
fractions in [0, 1], ranks are 0-based, and every result is exact: blocks bound the memory, never the answer. What has
no answer (a correlation with a constant, the detection of errors where there are none) is NaN; bad input is refused.

A confidence plays one of two roles. Without a gallery it says how ambiguous a text is: the concentration. Given the
gallery it says whether this result is right: the retrieval posterior, [`retrieval_posterior`].
"""

from .calibration import calibration_metrics
from .directions import confidence_metrics, oracle_metrics, posterior_metrics, retrieval_uncertainty_metrics
from .hierarchies import Hierarchies, read_hierarchies
from .levels import rank_correlation, uncertainty_metrics
from .many_to_many import TopK, many_to_many_metrics, top_k_both_ways
from .posterior import QueryPosteriors, RetrievalPosterior, retrieval_posterior
from .query_performance import JudgedQueries, query_performance_metrics, read_judged_queries
from .ranks import RetrievalRanks, rank_both_ways
from .recall import median_rank, recall_at_k, retrieval_metrics
from .resampling import auroc_difference_interval, bootstrap_intervals, confidence_intervals, mean_over_seeds
from .scale_fit import fit_logit_scale
from .scores import EmbeddingScores
from .selective import risk_coverage_curve, selective_metrics
from .specificity import ShortenedCaptions, graded, remove_words, specificity_correlation, word_removal_metrics


__all__ = [
    "EmbeddingScores",
    "Hierarchies",
    "JudgedQueries",
    "QueryPosteriors",
    "RetrievalPosterior",
    "RetrievalRanks",
    "ShortenedCaptions",
    "TopK",
    "auroc_difference_interval",
    "bootstrap_intervals",
    "calibration_metrics",
    "confidence_intervals",
    "confidence_metrics",
    "fit_logit_scale",
    "graded",
    "many_to_many_metrics",
    "mean_over_seeds",
    "median_rank",
    "oracle_metrics",
    "posterior_metrics",
    "query_performance_metrics",
    "rank_both_ways",
    "rank_correlation",
    "read_hierarchies",
    "read_judged_queries",
    "recall_at_k",
    "remove_words",
    "retrieval_metrics",
    "retrieval_posterior",
    "retrieval_uncertainty_metrics",
    "risk_coverage_curve",
    "selective_metrics",
    "specificity_correlation",
    "top_k_both_ways",
    "uncertainty_metrics",
    "word_removal_metrics",
]
