"""What each part of a calibration is worth: the size of the reference, beta, the features of the probe, the sample."""

import torch
import torch.nn.functional as F

from benchmarks.common import mean_and_deviation
from modeling_asymvlm import AsymVLMModel
from modeling_asymvlm.calibration.corpus import ReferenceCorpus
from modeling_asymvlm.calibration.evidence import EvidenceCorrection, folds_of_images, log_evidence
from modeling_asymvlm.calibration.fitting import HeldOut
from modeling_asymvlm.calibration.regression import NUM_FOLDS, fit_ridge
from modeling_asymvlm.calibration.text_probe import FEATURES, CorpusReader
from modeling_asymvlm.evaluation import selective_metrics
from modeling_asymvlm.store.embedding_store import EmbeddingSplit


BANK_SIZES = (100, 300, 1000, 3000)
BETA_BY_RULE = 0.5
NUM_SAMPLES = 5  # of the reference


class Ablation:
    """
    One head with its splits: everything is fitted on the validation split and judged on the test split.

    Args:
        model (`AsymVLMModel`): in evaluation mode.
        splits (`dict[str, EmbeddingSplit]`): all three.
    """

    def __init__(self, model: AsymVLMModel, splits: dict[str, EmbeddingSplit]):
        self.model, self.splits = model, splits
        self.law, self.tau = model.config.law, model.logit_scale.item()
        self.held_out, self.test = (HeldOut(model, splits[name], seed=0) for name in ("validation", "test"))
        self.sides = (self.held_out, self.test)
        self.logits = {side: self.tau * self.law.scores(side.text_embeds, side.image_embeds) for side in self.sides}

    def corrected(self, texts: torch.Tensor, beta: float | None = None) -> tuple[EvidenceCorrection, torch.Tensor]:
        """The correction by these reference texts, with a given beta or the fitted one, and corrected test scores."""
        of_held_out, of_test = (
            log_evidence(self.law.scores, self.tau, texts, side.image_embeds) for side in self.sides
        )
        correction = EvidenceCorrection.fit(self.logits[self.held_out], of_held_out, self.held_out.index)
        if beta is not None:
            scores = self.logits[self.held_out] - beta * of_held_out.float()
            correction = EvidenceCorrection(EvidenceCorrection.fit_scale(scores, self.held_out.index), beta)
        return correction, correction.apply(self.logits[self.test], of_test)

    def worth(self, scores: torch.Tensor) -> list[str]:
        """R@1, negative log-likelihood and AUROC of the posterior of test scores."""
        index = self.test.index
        log_posterior = scores.log_softmax(dim=1)
        correct = (scores.argmax(dim=1) == index).numpy()
        auroc = selective_metrics(-log_posterior.amax(dim=1).numpy(), correct)["auroc"]
        nll = F.cross_entropy(scores, index).item()
        return [f"{correct.mean():.4f}", f"{nll:.4f}", f"{auroc:.3f}"]

    def of_correction(self) -> list[list[str]]:
        """Rows of the bank's size, of beta by rule, and of other samples of the reference."""
        reference, _ = ReferenceCorpus.sample(self.model, self.splits["train"])
        texts, rows = reference.text_embeds, [["none", "", *self.worth(self.logits[self.test])]]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
        for size in (*(each for each in BANK_SIZES if each < len(texts)), len(texts)):
            correction, scores = self.corrected(texts[order[:size]])
            rows.append([f"{size} reference captions", f"{correction.beta:.2f}", *self.worth(scores)])
        for rule in (BETA_BY_RULE, 1.0):
            _, scores = self.corrected(texts, beta=rule)
            rows.append(["beta by rule", f"{rule:.2f}", *self.worth(scores)])
        halves = []
        for seed in range(NUM_SAMPLES):
            half, _ = ReferenceCorpus.sample(self.model, self.splits["train"], max_texts=len(texts) // 2, seed=seed)
            correction, scores = self.corrected(half.text_embeds)
            halves.append([correction.beta, *map(float, self.worth(scores))])
        spread = [mean_and_deviation(column, 3) for column in zip(*halves, strict=True)]
        return [*rows, [f"{NUM_SAMPLES} random halves of the reference", *spread]]

    def of_probe(self) -> list[list[str]]:
        """Rows of text alone: AUROC with each feature of the probe left out, and of each feature alone."""
        reference, rows = ReferenceCorpus.sample(self.model, self.splits["train"])
        correction, scores = self.corrected(reference.text_embeds)
        reader = CorpusReader(reference, self.law, self.tau, correction)
        evidence = reader.evidence(reference.image_embeds)
        own = reader.view(reference.text_embeds, evidence, reference.text_image_index)
        folds = folds_of_images(reference.text_image_index, NUM_FOLDS, 0)
        units = F.normalize(self.splits["train"].text_features[rows].float(), dim=-1)
        first = fit_ridge(units, own.own_log_posterior, folds)
        fitted = torch.cat([first.predictions[:, None], own.features], dim=1)
        of_test = reader.view(self.test.text_embeds, evidence)
        prediction = first.regression(F.normalize(self.test.text_features.float(), dim=-1))
        asked = torch.cat([prediction[:, None], of_test.features], dim=1)
        correct = (scores.argmax(dim=1) == self.test.index).numpy()

        def auroc(kept: list[int]) -> str:
            regression = fit_ridge(fitted[:, kept], own.own_log_posterior, folds).regression
            return f"{selective_metrics(-regression(asked[:, kept]).numpy(), correct)['auroc']:.3f}"

        every = list(range(len(FEATURES)))
        table = [["all features", auroc(every), ""]]
        for number, name in enumerate(FEATURES):
            table.append([name, auroc([each for each in every if each != number]), auroc([number])])
        return table
