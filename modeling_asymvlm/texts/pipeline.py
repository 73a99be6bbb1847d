"""`pipeline("text-uncertainty")`: how specific a text is, and which of its words make it so."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from ..calibration.reference import REFERENCE_FILE, UncertaintyReference
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
        reference (`UncertaintyReference`, *optional*):
            The corpus that percentiles refer to. By default the one that was saved with the checkpoint, in its folder
            or on the main branch of its repository; for another branch or commit pass
            `UncertaintyReference.from_pretrained(name, revision=...)`. Where there is none, or that of another head,
            there are no percentiles.
        top_words (`int`, *optional*, defaults to 3):
            How many words to name at most; here or when called. With 0, the backbone sees the text alone.

    Raises:
        ValueError: for a deterministic model, for a `reference` of other head weights, and when called for an empty
            text or one that is longer than the context.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(self, *args: Any, reference: UncertaintyReference | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model.config.law.check_concentration()
        if reference is not None:
            reference.check_head(self.model)  # type: ignore[arg-type]
        elif self.model.name_or_path:
            reference = self._saved_reference(self.model.name_or_path)
        self.reference = reference

    def _saved_reference(self, checkpoint: str) -> UncertaintyReference | None:
        try:
            reference = UncertaintyReference.from_pretrained(checkpoint)
        except FileNotFoundError:
            return None
        if not reference.is_of(self.model):  # type: ignore[arg-type]
            logger.warning(
                f"No percentiles: {REFERENCE_FILE} of {checkpoint!r} belongs to other head weights than "
                "these, which were loaded from another revision or changed since. Pass their own as reference=."
            )
            return None
        return reference

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

            - **uncertainty** (`float`) -- 1 / kappa.
            - **concentration** (`float`) -- kappa.
            - **percentile** (`float` or `None`) -- the share of the reference's texts, in per cent, that are less
              uncertain: 0 is more specific than all of them, 100 vaguer. `None` without a reference.
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
        return {"concentration": self.model(**model_inputs).concentration, "text": text, "is_last": is_last}

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
            "percentile": None if self.reference is None else self.reference.percentile(uncertainty),
            "words": sorted(lowering, key=lambda word: -word["reduction"])[:top_words],
        }

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Writes the model, the tokenizer and the reference. The pipeline itself comes with this package and not with the
        checkpoint, which therefore loads without remote code.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)  # type: ignore[union-attr]
        if self.reference is not None:
            self.reference.save(save_directory)
