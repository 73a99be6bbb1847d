"""`pipeline("text-uncertainty")`: how specific a text is, and which of its words make it so."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from ..calibration.calibration import Calibration
from ..calibration.calibration_files import CALIBRATION_FILE
from ..calibration.typicality import UNLIKE
from .tokenization import check_texts, tokenize_texts
from .words import texts_without_words, word_effects


logger = logging.get_logger(__name__)


class TextUncertaintyPipeline(ChunkPipeline):
    """
    The uncertainty of texts, and the words that lower it most.

    Example:

    ```python
    >>> import modeling_asymvlm
    >>> from transformers import pipeline

    >>> judge = pipeline("text-uncertainty", model="outputs/asymvlm", top_words=1)
    >>> judge("a small red circle")
    ```

    Takes what other pipelines of transformers take: `model`, `tokenizer`, `device`, `batch_size`, and texts as a
    string, a list, a generator or a `Dataset`. A batch holds texts together with the same texts without a word.

    Args:
        calibration (`Calibration`, *optional*):
            What held-out pairs taught of the head. By default the one that was saved with the checkpoint, in its
            folder or on the main branch of its repository; for another branch or commit pass
            `Calibration.from_pretrained(name, revision=...)`. Where there is none, or that of another head, there are
            no percentiles, confidences and typicality.
        top_words (`int`, *optional*, defaults to 3):
            How many words to name at most; here or when called. With 0, the backbone sees the text alone.

    Raises:
        ValueError: for a deterministic model, for a `calibration` of other head weights, and when called for an empty
            text or one that is longer than the context.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(self, *args: Any, calibration: Calibration | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.config.law.check_concentration()
        if calibration is not None:
            calibration.check_head(self.model)  # type: ignore[arg-type]
        elif self.model.name_or_path:
            calibration = self._saved_calibration(self.model.name_or_path)
        self.calibration = calibration

    def _saved_calibration(self, checkpoint: str) -> Calibration | None:
        try:
            calibration = Calibration.from_pretrained(checkpoint)
        except FileNotFoundError:
            return None
        if not calibration.is_of(self.model):  # type: ignore[arg-type]
            logger.warning(
                f"No percentiles: {CALIBRATION_FILE} of {checkpoint!r} belongs to other head weights than these, "
                "which were loaded from another revision or changed since. Pass their own as calibration=."
            )
            return None
        return calibration

    def _sanitize_parameters(self, top_words: int | None = None, **unknown: Any) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(f"There is no argument {next(iter(unknown))!r} of the pipeline text-uncertainty.")
        if top_words is None:
            return {}, {}, {}
        if not isinstance(top_words, int) or top_words < 0:
            raise ValueError(f"top_words must be a whole number from 0 on, got {top_words!r}.")
        return {"with_words": top_words > 0}, {}, {"top_words": top_words}

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs (`str`, `list[str]`, generator or `Dataset` of strings): the texts.
            top_words (`int`, *optional*), batch_size (`int`, *optional*): in place of those of the pipeline.

        Returns:
            For each text a dictionary; a list of them for a list, an iterator for a generator or a `Dataset`:

            - **note** (`str` or `None`) -- what must be known before any number: that the text is unlike the training
              captions, or why there is no confidence.
            - **uncertainty** (`float`) -- 1 / kappa, a learned concentration, not a probability of error.
            - **concentration** (`float`) -- kappa.
            - **percentile** (`float` or `None`) -- the share of the calibration's held-out captions, in per cent, that
              are less uncertain: 0 is more specific than all of them, 100 vaguer. This and what follows is `None`
              without a calibration.
            - **text_confidence** (`float` or `None`) -- how often a first result for such a text is right, in a
              gallery of **gallery_size** pictures that holds the answer, with **text_confidence_interval** (`[low,
              high]`), how often it was for held-out captions of about this confidence; `None` where that is not to be
              trusted.
            - **fits_about** (`float` or `None`) -- how many of **reference_images** pictures the text fits.
            - **typicality** (`float` or `None`) -- p-value among held-out captions; small is unlike any of them.
            - **words** (`list[dict]`) -- the words that lower the uncertainty, the strongest first, at most
              `top_words`: **word**, **start** and **end** in the text, **uncertainty_without** it, and **reduction**,
              the difference. Empty for a text of one word.
        """
        if isinstance(inputs, list | tuple) and not inputs:
            return []
        return super().__call__(inputs, *args, **kwargs)

    def preprocess(self, inputs: Any, with_words: bool = True) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The tokens of the text, and of the text without each of its words."""
        check_texts([inputs])
        texts = texts_without_words(inputs) if with_words else [inputs]
        tokenized = tokenize_texts(self.tokenizer, texts)
        tokenized.check_context(self.model.config.text_max_length)
        for number in range(len(texts)):
            yield {**tokenized.padded([number]), "text": inputs, "is_last": number == len(texts) - 1}

    def _forward(self, model_inputs: dict[str, Any], **_: Any) -> dict[str, Any]:  # type: ignore[override]
        text, is_last = model_inputs.pop("text"), model_inputs.pop("is_last")
        features = self.model.backbone_text_features(**model_inputs)  # type: ignore[operator]
        features = features.to(self.model.logit_scale.device)
        concentration = self.model(text_features=features, return_dict=True).concentration
        return {"concentration": concentration, "text_features": features, "text": text, "is_last": is_last}

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], top_words: int = 3
    ) -> dict[str, Any]:
        """The result for one text; see [`~TextUncertaintyPipeline.__call__`]."""
        concentration = torch.cat([outputs["concentration"].reshape(1) for outputs in model_outputs])
        uncertainty = (1 / concentration[0]).item()
        all_words = word_effects(model_outputs[0]["text"], concentration) if top_words else ()
        lowering = [vars(word) for word in all_words if word.reduction is not None and word.reduction > 0]
        return {
            "uncertainty": uncertainty,
            "concentration": concentration[0].item(),
            **self._calibrated(uncertainty, model_outputs[0]["text_features"].reshape(1, -1)),
            "words": sorted(lowering, key=lambda word: -word["reduction"])[:top_words],
        }

    def _calibrated(self, uncertainty: float, text_features: torch.Tensor) -> dict[str, Any]:
        """What the calibration says of one text."""
        found: dict[str, Any] = dict.fromkeys(
            (
                "note",
                "percentile",
                "text_confidence",
                "text_confidence_interval",
                "gallery_size",
                "fits_about",
                "reference_images",
                "typicality",
            )
        )
        calibration = self.calibration
        if calibration is None:
            return found
        report = calibration.text_report(text_features)
        typicality = float(report.typicality[0])
        if report.text_confidence is not None and report.text_confidence_interval is not None:
            found["text_confidence"] = float(report.text_confidence[0])
            found["text_confidence_interval"] = report.text_confidence_interval[0].tolist()
        else:
            found["note"] = f"No confidence: {calibration.of_text.measured.reason}."
        if typicality < UNLIKE:
            found["note"] = f"Unlike the training captions (p = {typicality:.2g}): the numbers below say little of it."
        return found | {
            "percentile": None if calibration.reference is None else calibration.reference.percentile(uncertainty),
            "gallery_size": calibration.gallery_size,
            "fits_about": float(report.fits_about[0]),
            "reference_images": calibration.num_reference_images,
            "typicality": typicality,
        }

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Writes the model, the tokenizer and the calibration. The pipeline itself comes with this package and not with
        the checkpoint, which therefore loads without remote code.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)  # type: ignore[union-attr]
        if self.calibration is not None:
            self.calibration.save_pretrained(save_directory)
