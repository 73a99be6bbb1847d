"""Ridge against its normal equations, logistic regression against scipy, and folds that see nothing of their own."""

import numpy as np
import pytest
import torch
from scipy import optimize

from modeling_asymvlm.calibration import regression
from modeling_asymvlm.calibration.regression import PENALTIES, LogisticRegression, fit_ridge


def linear_case(seed: int, rows: int = 120, features: int = 7, noise: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, features, generator=generator, dtype=torch.float64) + 3.0
    inputs[:, 0] = inputs[:, 1] + 0.01 * inputs[:, 0]  # nearly collinear
    target = inputs @ torch.randn(features, generator=generator, dtype=torch.float64) - 5.0
    target = target + noise * torch.randn(rows, generator=generator, dtype=torch.float64)
    return inputs, target, torch.arange(rows) % 5


def normal_equations(inputs: np.ndarray, target: np.ndarray, penalty: float) -> np.ndarray:
    """Weights, then the intercept, which is not penalised."""
    rows, features = inputs.shape
    design = np.hstack([inputs, np.ones((rows, 1))])
    penalties = np.diag([rows * penalty * inputs.var(axis=0).mean()] * features + [0.0])
    return np.linalg.solve(design.T @ design + penalties, design.T @ target)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_ridge_at_each_penalty_solves_the_normal_equations(penalty, monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", (penalty,))
    inputs, target, folds = linear_case(0)
    fitted = fit_ridge(inputs, target, folds).regression
    expected = normal_equations(inputs.numpy(), target.numpy(), penalty)
    np.testing.assert_allclose([*fitted.weights.tolist(), fitted.intercept], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.1), (1, 3.0), (2, 30.0), (3, 300.0)])
def test_the_penalty_is_that_of_least_error_out_of_fold(seed, noise):
    inputs, target, folds = linear_case(seed, noise=noise, rows=60)
    found = fit_ridge(inputs, target, folds)
    predictions = np.empty((len(PENALTIES), len(target)))
    for number, penalty in enumerate(PENALTIES):
        for fold in range(5):
            rest, own = (folds != fold).numpy(), (folds == fold).numpy()
            point = normal_equations(inputs.numpy()[rest], target.numpy()[rest], penalty)
            predictions[number, own] = inputs.numpy()[own] @ point[:-1] + point[-1]
    best = np.square(predictions - target.numpy()).mean(axis=1).argmin()
    np.testing.assert_allclose(found.predictions, predictions[best], rtol=1e-6, atol=1e-6)
    expected = normal_equations(inputs.numpy(), target.numpy(), PENALTIES[best])
    np.testing.assert_allclose(found.regression.weights, expected[:-1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.regression(inputs), inputs.numpy() @ expected[:-1] + expected[-1], rtol=1e-6)


@pytest.mark.parametrize("fold", range(5))
def test_predictions_out_of_fold_do_not_see_their_own_target(fold, monkeypatch):
    monkeypatch.setattr(regression, "PENALTIES", (0.1,))
    inputs, target, folds = linear_case(4)
    own = folds == fold
    changed = target.clone()
    changed[own] += 100 * torch.randn(int(own.sum()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, after = (fit_ridge(inputs, each, folds).predictions for each in (target, changed))
    assert torch.equal(before[own], after[own])
    assert (before[~own] - after[~own]).abs().min() > 0


def test_ridge_of_constant_features_predicts_the_mean():
    found = fit_ridge(torch.ones(20, 3), torch.arange(20.0), torch.arange(20) % 5)
    assert torch.isfinite(found.regression.weights).all()
    np.testing.assert_allclose(found.regression(torch.ones(2, 3)), 9.5)


def logistic_case(seed: int, rows: int = 200):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 50.0, 0.01]) + 2.0
    log_odds = inputs[:, 0] - 0.02 * inputs[:, 1] - 1
    return inputs, (torch.rand(rows, generator=generator, dtype=torch.float64) < log_odds.sigmoid()).double()


@pytest.mark.parametrize("shares", [False, True])
def test_logistic_regression_maximises_its_penalised_likelihood(shares):
    inputs, target = logistic_case(0)
    if shares:
        target = 0.2 + 0.6 * target
    fitted = LogisticRegression.fit(inputs, target)
    values, labels = inputs.numpy(), target.numpy()
    standard = (values - values.mean(axis=0)) / values.std(axis=0)

    def loss(point: np.ndarray) -> float:
        log_odds = standard @ point[1:] + point[0]
        likelihood = labels * np.logaddexp(0, -log_odds) + (1 - labels) * np.logaddexp(0, log_odds)
        return likelihood.sum() + 0.5 * np.square(point[1:]).sum() + 0.5e-3 * point[0] ** 2

    point = optimize.minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    expected = standard @ point[1:] + point[0]
    np.testing.assert_allclose(fitted.log_odds(inputs), expected, atol=1e-5)
    np.testing.assert_allclose(fitted(inputs), 1 / (1 + np.exp(-expected)), atol=1e-6)


def test_logistic_regression_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, target = logistic_case(1, rows=400)
    standard = (inputs - inputs.mean(dim=0)) / inputs.std(dim=0, correction=0)
    other = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(standard.numpy(), target.numpy())
    found = LogisticRegression.fit(inputs, target)(inputs)
    np.testing.assert_allclose(found, other.predict_proba(standard.numpy())[:, 1], atol=1e-4)


@pytest.mark.parametrize("target", ["separable", "ones", "zeros"])
def test_data_without_a_finite_maximum_stay_finite(target):
    inputs = torch.linspace(-1, 1, 50)[:, None] * torch.tensor([[1.0, 0.0]])
    labels = {"separable": (inputs[:, 0] > 0).double(), "ones": torch.ones(50), "zeros": torch.zeros(50)}[target]
    fitted = LogisticRegression.fit(inputs, labels)
    assert torch.isfinite(fitted.weights).all() and np.isfinite(fitted.intercept)
    assert ((fitted(inputs) > 0.5).double() == labels).all()


def test_probabilities_out_of_fold_are_those_of_the_other_folds():
    inputs, target = logistic_case(2)
    folds = torch.arange(len(target)) % 4
    found = LogisticRegression.out_of_fold(inputs, target, folds)
    for fold in range(4):
        own = folds == fold
        assert torch.equal(found[own], LogisticRegression.fit(inputs[~own], target[~own])(inputs[own]))
        changed = torch.where(own, 1 - target, target)
        assert torch.equal(LogisticRegression.out_of_fold(inputs, changed, folds)[own], found[own])


@pytest.mark.parametrize("seed", range(3))
def test_a_prior_is_kept_without_rows_of_weight_and_left_for_many(seed):
    generator = torch.Generator().manual_seed(seed)
    prior = LogisticRegression(torch.ones(1, dtype=torch.float64), 0.0)
    score = 3 * torch.randn(4000, 1, generator=generator).double()
    target = (torch.rand(4000, generator=generator) < (0.3 * score[:, 0] - 0.5).sigmoid()).double()
    few, many = (LogisticRegression.fit(score[:count], target[:count], prior) for count in (8, 4000))
    assert abs(float(few.weights) - 1) < abs(float(many.weights) - 1)
    assert float(many.weights) == pytest.approx(0.3, abs=0.03) and many.intercept == pytest.approx(-0.5, abs=0.15)
    agreeing = LogisticRegression.fit(score, score[:, 0].sigmoid(), prior)
    assert float(agreeing.weights) == pytest.approx(1, abs=1e-9) and agreeing.intercept == pytest.approx(0, abs=1e-9)


def test_the_most_probable_regression_under_a_prior_is_that_of_a_general_minimiser():
    generator = torch.Generator().manual_seed(5)
    score = 2 + 3 * torch.randn(60, 1, generator=generator).double()
    target = (torch.rand(60, generator=generator) < 0.7).double()
    prior = LogisticRegression(torch.ones(1, dtype=torch.float64), 0.4)
    mean, deviation = float(score.mean()), float(score.std(correction=0))

    def loss(point):
        weight, level = point  # level: log-odds at the mean score
        log_odds = torch.from_numpy(level + weight * (score[:, 0].numpy() - mean))
        likelihood = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, target, reduction="sum")
        return float(likelihood) + ((level - 0.4 - mean) ** 2 + ((weight - 1) * deviation) ** 2) / 2

    expected = optimize.minimize(
        loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    )
    found = LogisticRegression.fit(score, target, prior)
    assert float(found.weights) == pytest.approx(expected.x[0], abs=1e-6)
    assert found.intercept + mean * float(found.weights) == pytest.approx(expected.x[1], abs=1e-6)
