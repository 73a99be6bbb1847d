"""The metrics as `evaluate` modules: loaded from their folders, offline, and equal to the functions."""

import doctest
from importlib.resources import files

import evaluate
import numpy as np
import pytest

from modeling_asymvlm.evaluation import confidence_metrics, retrieval_metrics


MODULES = files("modeling_asymvlm") / "evaluation" / "evaluate_modules"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "modules"))
        yield lambda name: evaluate.load(str(MODULES / name), cache_dir=str(folder / "cache"))


def test_retrieval_is_that_of_the_function_at_once_and_in_batches(load):
    generator = np.random.default_rng(0)
    index = generator.integers(0, 15, size=40)
    scores = (generator.integers(0, 9, size=(40, 15)) / 4).astype(np.float32)
    expected = retrieval_metrics(scores, index, ks=(1, 3))
    module = load("image_text_retrieval")
    assert module.compute(predictions=scores, references=index, ks=[1, 3]) == expected
    for rows in (slice(0, 30), slice(30, 40)):
        module.add_batch(predictions=scores[rows], references=index[rows])
    assert module.compute(ks=[1, 3]) == expected


def test_uncertainty_is_that_of_the_function(load):
    generator = np.random.default_rng(1)
    uncertainty = generator.integers(0, 20, size=80) / 7
    correct = generator.random(80) < 0.4
    result = load("retrieval_uncertainty").compute(predictions=uncertainty, references=correct, num_bins=5)
    assert result == confidence_metrics(uncertainty, correct, num_bins=5)


def test_bad_input_is_refused_through_the_module(load):
    with pytest.raises(ValueError, match="`correct` contains 2.0"):
        load("retrieval_uncertainty").compute(predictions=[1, 2], references=[0, 2], num_bins=2)


@pytest.mark.parametrize("name", ["image_text_retrieval", "retrieval_uncertainty"])
def test_the_examples_in_the_descriptions_are_right(load, name):
    description = load(name).inputs_description
    example = doctest.DocTestParser().get_doctest(description, {}, name, None, 0)
    assert len(example.examples) == 5
    assert doctest.DocTestRunner().run(example).failed == 0
