"""The quality of an uncertainty as an `evaluate` module: levels, risk–coverage and the detection of errors.

`evaluate` reads the imports of this file line by line and wants each in a line of its own.
"""

import datasets
import evaluate

from modeling_asymvlm.evaluation import confidence_metrics


DESCRIPTION = """
How well an uncertainty foretells whether the first result of a query is right: S, R² and -S·R² over levels of
uncertainty (Upadhyay et al., ICCV 2023), the area under the risk–coverage curve with its optimum and excess (Geifman
et al., ICLR 2019), and AUROC and average precision of finding the wrong ones.
"""

INPUTS = """
Args:
    predictions (list[float]): uncertainty of each query, higher is less certain, in any unit.
    references (list[float]): whether its first result is right: 0 or 1, or a probability.
    num_bins (int): number of levels of uncertainty. Defaults to 10.

Returns:
    dict: `spearman` (S), `pearson`, `r_squared`, `neg_spearman_r_squared`, `point_biserial`, `num_bins`, `bin_recall`,
    `bin_uncertainty`, `bin_count`, `error_rate`, `aurc`, `optimal_aurc`, `excess_aurc`, `auroc`, `aupr`. Figures
    without an answer, such as the detection of errors where there are none, are NaN.

Examples:
    >>> from importlib.resources import files
    >>> import evaluate
    >>> modules = files("modeling_asymvlm") / "evaluation" / "evaluate_modules"
    >>> uncertainty = evaluate.load(str(modules / "retrieval_uncertainty"))
    >>> uncertainty.compute(predictions=[0.1, 0.2, 0.7, 0.9], references=[1, 1, 1, 0], num_bins=2)["auroc"]
    1.0
"""

CITATION = """
@inproceedings{upadhyay2023probvlm,
    title = {{ProbVLM}: Probabilistic adapter for frozen vision-language models},
    author = {Upadhyay, Uddeshya and Karthik, Shyamgopal and Mancini, Massimiliano and Akata, Zeynep},
    booktitle = {ICCV},
    year = {2023}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class RetrievalUncertainty(evaluate.Metric):
    """[`~modeling_asymvlm.evaluation.confidence_metrics`] of uncertainties and outcomes."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references, num_bins=10) -> dict:
        return confidence_metrics(predictions, references, num_bins=num_bins)
