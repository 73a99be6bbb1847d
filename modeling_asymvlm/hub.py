"""Model cards, made from measured results only."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .report import NUM_BINS, format_table


PAPER = "https://arxiv.org/abs/2505.11029"


def model_card(
    results: dict[str, Any],
    *,
    model_name: str,
    config: dict[str, Any],
    base_model: str | None,
    dataset: str,
    command: str,
    plot: str | None = None,
    license: str | None = None,
) -> str:
    """
    Model card with YAML metadata, as Markdown.

    Args:
        results (`dict`): of [`~report.evaluate_split`], with `time`.
        model_name (`str`): title of the card.
        config (`dict`): the model's configuration.
        base_model (`str`, *optional*): Hub name of the backbone.
        dataset (`str`): name of the data that the model was trained and tested on.
        command (`str`): the command that made the model and the figures.
        plot (`str`, *optional*): file name of the reliability plot beside the card.
        license (`str`, *optional*): of the weights, as the Hub names it; left out where nobody has said.
    """
    figures = [
        EvalResult(
            task_type="zero-shot-image-classification",
            task_name="Image-text retrieval",
            dataset_type=re.sub(r"[^\w.]+", "-", dataset.lower()).strip("-"),
            dataset_name=dataset,
            dataset_split="test",
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 5),
        )
        for name, value in results["retrieval"].items()
    ]
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license=license,
        tags=["asymvlm", "uncertainty", "image-text-retrieval"],
        base_model=base_model,
        base_model_relation="adapter" if base_model else None,
        model_name=model_name,
        metrics=["recall"],
        eval_results=figures,
    )
    law = {"vmf": "von Mises–Fisher", "power_spherical": "Power Spherical", "deterministic": "deterministic"}
    direction = "learned" if config["mean_direction"] == "learned" else "that of the backbone"
    sections = [
        f"# {model_name}",
        f"A probabilistic text head on a frozen vision–language model, after [AsymVLM]({PAPER}): a text is a "
        f"{law[config['distribution']]} distribution on the unit hypersphere, an image a point. The mean direction is "
        f"{direction}.",
        "## Test results",
        f"{dataset}: {results['num_images']} images, {results['num_captions']} captions. Every figure was measured by"
        f"\n\n```bash\n{command}\n```",
        format_table(results),
    ]
    if "uncertainty" in results:
        sections.append(
            f"S is the Spearman correlation between uncertainty level and R@1 in {NUM_BINS} equal-count bins, R² that "
            "of their straight-line fit. Queries are binned by the caption (text -> image) and by the retrieved "
            "caption (image -> text)."
        )
        if plot:
            sections.append(f"![R@1 against uncertainty level]({plot})")
    sections += [
        "## Use",
        "```python\nimport modeling_asymvlm\nfrom transformers import AutoModel, AutoProcessor\n\n"
        'model = AutoModel.from_pretrained("path/to/this/folder")\n'
        + (
            'processor = AutoProcessor.from_pretrained("path/to/this/folder")\n'
            'inputs = processor(text=["a photo of a cat"], padding=True, return_tensors="pt")\n'
            "uncertainty = 1 / model(**inputs).concentration\n```"
            if config["vlm_config"] is not None
            else "# text_features (batch, projection_dim): the raw features the head was trained on\n"
            "uncertainty = 1 / model(text_features=text_features).concentration\n```"
        ),
        "## Intended use and limits",
        "1/kappa says how unspecific a text is, compared with other texts of this model; it does not say whether a "
        "gallery holds a match. kappa is ordinal: it is neither calibrated nor comparable between models. Texts "
        "unlike the training captions, in language, length or topic, get an uncertainty that nothing has tested.",
        "## Citation",
        f"Ju et al., *Exploiting the asymmetric uncertainty structure of pre-trained VLMs on the unit hypersphere*, "
        f"NeurIPS 2025, {PAPER}.",
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def write_model_card(path: str | Path, content: str) -> None:
    """Saves a card after checking that its metadata parse."""
    ModelCard(content).save(path)
