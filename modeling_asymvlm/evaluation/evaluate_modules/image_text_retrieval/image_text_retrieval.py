"""Image–text retrieval as an `evaluate` module: R@K and median rank, both ways.

`evaluate` reads the imports of this file line by line and wants each in a line of its own.
"""

import datasets
import evaluate
import numpy

from modeling_asymvlm.evaluation import retrieval_metrics


DESCRIPTION = """
Recall at k and median rank of text -> image and image -> text retrieval, exact, with any number of captions an image.
Equal scores rank in the order of index.
"""

INPUTS = """
Args:
    predictions (list[list[float]]): scores of each caption with every image, higher is better.
    references (list[int]): index of the image that each caption belongs to.
    ks (list[int]): where to take the recall. Defaults to [1, 5, 10].

Returns:
    dict: `text_to_image_recall@k` and `image_to_text_recall@k` for each k, fractions in [0, 1];
    `text_to_image_median_rank` and `image_to_text_median_rank`, counted from 1.

Examples:
    >>> from importlib.resources import files
    >>> import evaluate
    >>> modules = files("modeling_asymvlm") / "evaluation" / "evaluate_modules"
    >>> retrieval = evaluate.load(str(modules / "image_text_retrieval"))
    >>> retrieval.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[0, 1], ks=[1])["text_to_image_recall@1"]
    0.5
"""

CITATION = """
@inproceedings{ju2025asymvlm,
    title = {Exploiting the asymmetric uncertainty structure of pre-trained {VLMs} on the unit hypersphere},
    author = {Ju and others},
    booktitle = {NeurIPS},
    year = {2025},
    url = {https://arxiv.org/abs/2505.11029}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ImageTextRetrieval(evaluate.Metric):
    """[`~modeling_asymvlm.evaluation.retrieval_metrics`] of a matrix of scores."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": scores, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, ks=(1, 5, 10)) -> dict[str, float]:
        scores = numpy.asarray(predictions, dtype=numpy.float32)
        return retrieval_metrics(scores, numpy.asarray(references), ks=ks)
