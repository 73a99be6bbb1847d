"""Zero-shot classification of images, where a class is the fused distribution of its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import torch
from PIL import Image

from ..model.checkpoint_fingerprints import head_fingerprint
from ..model.distributions import PowerSpherical, VonMisesFisher
from ..model.modeling_asymvlm import AsymVLMModel
from ..model.objective import Likelihood, at_least_float32
from ..texts.encoding import encode_texts
from ..utils.pictures import any_picture
from .classifier_files import read_classifier, write_classifier
from .fusion import check_fusion, fuse_prompts, mean_log_likelihood, prompt_weights
from .prompts import check_classes, prompts_of_classes


ImageInput = str | Image.Image
Features = torch.Tensor | npt.ArrayLike


@dataclass(frozen=True)
class ZeroShotOutput:
    """
    What a [`ZeroShotClassifier`] says of images.

    Attributes:
        log_likelihood (`torch.FloatTensor` of shape `(num_images, num_classes)`): log-likelihood ratio of each image
            under each class against the uniform density, in nats; the cosine for `distribution="deterministic"`.
        logits (`torch.FloatTensor` of shape `(num_images, num_classes)`): tau times that.
        posterior (`torch.FloatTensor` of shape `(num_images, num_classes)`): probability of each class, the softmax of
            the logits: the classes are taken as equally frequent, and one of them as right.
    """

    log_likelihood: torch.Tensor
    logits: torch.Tensor
    posterior: torch.Tensor


class ZeroShotClassifier:
    """
    Classifies images among classes that are described by prompts. Make one with [`from_prompts`], or with
    [`from_features`] where features are cached.

    Example:

    ```python
    >>> import torch
    >>> from modeling_asymvlm import ZeroShotClassifier

    >>> prompts = {"dot": torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 0.0]]), "tree": torch.tensor([[0.0, 9.0, 0.0]])}
    >>> classifier = ZeroShotClassifier(prompts, distribution="vmf")
    >>> classifier(image_features=torch.tensor([[1.0, 0.2, 0.0]]), top_k=1)[0][0]["label"]
    'dot'

    ```

    Args:
        prompt_embeds (`Mapping[str, torch.Tensor]`):
            For each class the natural parameters of its prompts, of shape `(num_prompts, dim)`.
        distribution (`str`): `"vmf"`, `"power_spherical"` or `"deterministic"`.
        normalizer (`str`, *optional*, defaults to `"exact"`): `"exact"` or `"paper"`.
        logit_scale (`float`, *optional*, defaults to 1.0): temperature tau of the posterior.
        fusion (`str`, *optional*, defaults to `"product"`):
            `"product"` weighs prompts by their concentration; `"mean_direction"` and `"mean_log_likelihood"` count
            them alike. See [`prompt_fusion`].
        prompt_correlation (`float`, *optional*, defaults to 1.0):
            Of the product: 1 takes the prompts of a class as saying the same, 0 as independent evidence. Choose it, as
            tau, on validation data.
        model (`AsymVLMModel`, *optional*): in evaluation mode, to embed images; without it, and without its processor,
            the classifier takes image features alone.
        processor (`ProcessorMixin`, *optional*): the backbone's.

    Raises:
        ValueError: without any class, for a class without prompts, embeddings of other shapes than stated or that are
            not finite, and for unknown options.
    """

    def __init__(
        self,
        prompt_embeds: Mapping[str, Features],
        *,
        distribution: str,
        normalizer: str = "exact",
        logit_scale: float = 1.0,
        fusion: str = "product",
        prompt_correlation: float = 1.0,
        model: AsymVLMModel | None = None,
        processor: Any = None,
    ):
        law = Likelihood(distribution, normalizer)
        check_fusion(fusion, prompt_correlation, law)
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"logit_scale is {logit_scale}, but must be positive and finite.")
        check_classes(prompt_embeds)
        width = (0, *torch.as_tensor(next(iter(prompt_embeds.values()))).shape)[-1]
        embeds = [_checked(rows, width, f"The prompts of class {name!r}") for name, rows in prompt_embeds.items()]
        device = embeds[0].device if model is None else model.logit_scale.device
        self.law, self.logit_scale = law, float(logit_scale)
        self.fusion, self.prompt_correlation = fusion, float(prompt_correlation)
        self.model, self.processor = model, processor
        self.class_names = list(prompt_embeds)
        self.num_prompts = [len(rows) for rows in embeds]
        self.prompt_embeds = torch.cat(embeds).to(device)
        self._prompt_class = torch.arange(len(embeds)).repeat_interleave(torch.tensor(self.num_prompts)).to(device)
        self._class_embeds: torch.Tensor | None = None
        if fusion != "mean_log_likelihood":
            self._class_embeds = fuse_prompts(*self._prompts, fusion=fusion, prompt_correlation=prompt_correlation)

    @classmethod
    def from_prompts(
        cls,
        model: AsymVLMModel,
        processor: Any,
        classes: Mapping[str, Sequence[str]] | Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        batch_size: int = 256,
        **options: Any,
    ) -> Self:
        """
        A classifier whose classes are described in words.

        Args:
            model (`AsymVLMModel`): with its backbone, in evaluation mode.
            processor (`ProcessorMixin`): the backbone's.
            classes (`Mapping[str, Sequence[str]]` or `Sequence[str]`):
                The prompts of each class, or the names of the classes, which are put into the templates.
            templates (`Sequence[str]`, *optional*): such as `"a photo of a {}."`, with names alone; by default `"{}"`.
            batch_size (`int`, *optional*, defaults to 256): prompts at a time.
            options: `fusion`, `prompt_correlation` and `logit_scale`, by default the model's.

        Raises:
            TypeError: for names, prompts and templates that are no strings.
            ValueError: for empty or repeated classes, empty prompts, prompts longer than the backbone's context, and
                templates without `{}`.
        """
        prompts = prompts_of_classes(classes, templates)
        texts = [text for own in prompts.values() for text in own]
        embeds = encode_texts(model, processor, texts, batch_size=batch_size)
        parts = embeds.split([len(own) for own in prompts.values()])
        return cls._of_model(model, dict(zip(prompts, parts, strict=True)), processor=processor, **options)

    @classmethod
    @torch.no_grad()
    def from_features(
        cls, model: AsymVLMModel, text_features: Mapping[str, Features], *, processor: Any = None, **options: Any
    ) -> Self:
        """
        A classifier from the backbone's cached text features: no tokenizer is needed, nor a backbone.

        Args:
            model (`AsymVLMModel`): in evaluation mode.
            text_features (`Mapping[str, torch.Tensor]`): for each class the raw features of its prompts, of shape
                `(num_prompts, projection_dim)`.
            processor, options: as for [`from_prompts`].
        """
        check_classes(text_features)
        width = model.config.projection_dim
        features = [_checked(rows, width, f"The prompts of class {name!r}") for name, rows in text_features.items()]
        every = torch.cat(features).to(model.logit_scale.device)
        parts = model.get_text_features(text_features=every, return_dict=True).pooler_output.split(
            [len(rows) for rows in features]
        )
        return cls._of_model(model, dict(zip(text_features, parts, strict=True)), processor=processor, **options)

    @classmethod
    def _of_model(cls, model: AsymVLMModel, prompt_embeds: Mapping[str, torch.Tensor], **options: Any) -> Self:
        options = {"logit_scale": model.logit_scale.item(), **options}
        return cls(prompt_embeds, **asdict(model.config.law), model=model, **options)

    def with_options(self, **changes: Any) -> Self:
        """The same prompts with another `fusion`, `prompt_correlation` or `logit_scale`, as validation suggests."""
        return type(self)(self._prompts_by_class(), **{**self._options(), **changes})

    @property
    def class_distribution(self) -> VonMisesFisher | PowerSpherical:
        """The classes as distributions, batch shape `(num_classes,)`.

        Raises:
            ValueError: for `fusion="mean_log_likelihood"` and deterministic models, which have none.
        """
        if self._class_embeds is None or not self.law.has_concentration:
            raise ValueError(
                f"Classes of fusion={self.fusion!r} and distribution={self.law.distribution!r} are no distributions: "
                "use fusion='product' with a probabilistic model."
            )
        return self.law.distribution_class.from_natural_parameter(self._class_embeds)

    @property
    def prompt_weights(self) -> dict[str, list[float]]:
        """The share of each prompt in its class, in the order of the prompts; see [`prompt_fusion.prompt_weights`]."""
        weights = prompt_weights(*self._prompts, fusion=self.fusion).split(self.num_prompts)
        return {name: own.tolist() for name, own in zip(self.class_names, weights, strict=True)}

    @torch.no_grad()
    def predict(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        *,
        image_features: Features | None = None,
        batch_size: int = 64,
    ) -> ZeroShotOutput:
        """
        Log-likelihoods, logits and posteriors of all classes.

        Args:
            images (`PIL.Image.Image`, `str` or a sequence of them, *optional*): pictures, paths or addresses.
            image_features (`torch.Tensor` or array of shape `(num_images, dim)`, *optional*):
                The backbone's raw features or unit vectors, of any non-zero length, instead of images.
            batch_size (`int`, *optional*, defaults to 64): images through the backbone at a time.

        Raises:
            ValueError: for both or neither of the inputs, no image, features of another width, zero or not finite, and
                for images without a model and a processor.
        """
        if (images is None) == (image_features is None):
            raise ValueError("Pass either images or image_features.")
        features: Any = image_features if images is None else self._embedded(images, batch_size)
        vectors = _checked(features, self.prompt_embeds.shape[1], "image_features").to(self.prompt_embeds.device)
        if not vectors.any(dim=1).all():
            raise ValueError("Some image_features are zero and so have no direction: leave these images out.")
        if self._class_embeds is None:
            log_likelihood = mean_log_likelihood(*self._prompts, vectors, self.law).T
        else:
            log_likelihood = self.law.scores(self._class_embeds, vectors).T
        logits = self.logit_scale * log_likelihood
        return ZeroShotOutput(log_likelihood=log_likelihood, logits=logits, posterior=logits.softmax(dim=-1))

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        *,
        image_features: Features | None = None,
        top_k: int | None = None,
        batch_size: int = 64,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """
        The most probable classes, in the format of `pipeline("zero-shot-image-classification")`.

        Args:
            images, image_features, batch_size: as for [`predict`].
            top_k (`int`, *optional*): how many classes to list, all by default.

        Returns:
            For one image a list of `{"score": posterior, "label": class}`, best first, and otherwise a list of such
            lists, one for each image.
        """
        if top_k is not None and not 1 <= top_k <= len(self.class_names):
            raise ValueError(
                f"top_k is {top_k}, but must be from 1 to the number of classes, {len(self.class_names)}."
            )
        posterior = self.predict(images, image_features=image_features, batch_size=batch_size).posterior
        order = posterior.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
        results = [
            [{"score": score, "label": self.class_names[row]} for score, row in zip(scores, rows, strict=True)]
            for scores, rows in zip(posterior.gather(1, order).tolist(), order.tolist(), strict=True)
        ]
        return results[0] if isinstance(images, ImageInput) else results

    def save(self, path: str | Path) -> None:
        """
        Writes a folder without pickle: the prompts' embeddings as safetensors, names and options as JSON. The model is
        not part of it. A classifier that was saved at `path` before is replaced.

        Raises:
            FileExistsError: if anything but a classifier or an empty folder is at `path`.
            OSError: if the disk is full or refuses.
        """
        options = {name: value for name, value in self._options().items() if name not in ("model", "processor")}
        fingerprint = None if self.model is None else head_fingerprint(self.model)
        classes = dict(zip(self.class_names, self.num_prompts, strict=True))
        write_classifier(Path(path), self.prompt_embeds, classes=classes, options=options, model=fingerprint)

    @classmethod
    def load(cls, path: str | Path, *, model: AsymVLMModel | None = None, processor: Any = None) -> Self:
        """
        Reads a saved classifier.

        Args:
            path (`str` or `Path`): the folder.
            model (`AsymVLMModel`, *optional*): to embed images; compared with the one that embedded the prompts.
            processor (`ProcessorMixin`, *optional*): the backbone's.

        Raises:
            FileNotFoundError: if there is no classifier at `path`.
            ValueError: if a file is damaged, or it was made by another model.
            OSError: if a file may not be read.
        """
        saved = read_classifier(Path(path))
        if model is not None and saved.model != head_fingerprint(model):
            raise ValueError(
                f"The classifier at {str(path)!r} was made by another model: its prompts do not belong to this one. "
                f"Make it again with {cls.__name__}.from_prompts."
            )
        return cls(saved.prompt_embeds, **saved.options, model=model, processor=processor)

    @property
    def _prompts(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.prompt_embeds, self._prompt_class, len(self.class_names)

    def _prompts_by_class(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.class_names, self.prompt_embeds.split(self.num_prompts), strict=True))

    def _options(self) -> dict[str, Any]:
        names = ("logit_scale", "fusion", "prompt_correlation", "model", "processor")
        return {**asdict(self.law), **{name: getattr(self, name) for name in names}}

    def _embedded(self, images: ImageInput | Sequence[ImageInput], batch_size: int) -> torch.Tensor:
        if self.model is None or self.processor is None:
            raise ValueError("This classifier has no model and processor to embed images: pass image_features.")
        pictures = [images] if isinstance(images, ImageInput) else list(images)
        if not pictures:
            raise ValueError("There is no image to classify: pass at least one.")
        parts = []
        for start in range(0, len(pictures), batch_size):
            some = [any_picture(picture) for picture in pictures[start : start + batch_size]]
            inputs = self.processor(images=some, return_tensors="pt").to(self.model.device)
            parts.append(self.model.get_image_features(**inputs, return_dict=True).pooler_output)
        return torch.cat(parts)


def _checked(values: Features, width: int, name: str) -> torch.Tensor:
    """float32 at least, of shape `(rows, width)`."""
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2 or tensor.shape[1] != width or not len(tensor):
        raise ValueError(
            f"{name} must have shape (n, {width}) with n at least 1, got {tuple(tensor.shape)}. Another width is "
            "that of another model."
        )
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite floating-point numbers: make these features again.")
    return at_least_float32(tensor)
