"""Whether a model's uncertainty follows the specificity of texts: hierarchies of captions, and words taken away."""

from collections.abc import Sequence
from typing import Any

from ..evaluation import Hierarchies, remove_words, specificity_correlation, word_removal_metrics
from ..model.modeling_asymvlm import AsymVLMModel
from ..texts.encoding import text_concentration


def evaluate_hierarchies(
    model: AsymVLMModel, processor: Any, hierarchies: Hierarchies, *, batch_size: int = 256
) -> dict[str, float]:
    """
    Whether concentration rises from general to specific captions; see [`~evaluation.specificity_correlation`].

    Args:
        model, processor, batch_size: as for [`text_concentration`].
        hierarchies (`Hierarchies`): of [`~evaluation.read_hierarchies`].
    """
    concentration = text_concentration(model, processor, hierarchies.captions, batch_size=batch_size)
    return specificity_correlation(concentration, hierarchies.level, hierarchies.group)


def evaluate_word_removal(
    model: AsymVLMModel,
    processor: Any,
    captions: Sequence[str],
    *,
    mask: str | None = None,
    kept_shares: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, float]:
    """
    Whether uncertainty rises as the words of captions go; see [`~evaluation.word_removal_metrics`].

    Args:
        model, processor, batch_size: as for [`text_concentration`].
        captions (`Sequence[str]`): any captions.
        mask (`str`, *optional*): what to put in place of a word; by default words are deleted.
        kept_shares, seed: as for [`~evaluation.remove_words`].
    """
    shortened = remove_words(captions, kept_shares=kept_shares, mask=mask, seed=seed)
    concentration = text_concentration(model, processor, shortened.captions, batch_size=batch_size)
    return word_removal_metrics(1 / concentration, shortened.kept, shortened.group)
