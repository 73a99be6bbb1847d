"""Configuration of AsymVLM: a frozen vision–text backbone and a probabilistic text head."""

import copy
import inspect
import math
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .backbones import RemoteCodeConfig, embedding_dim, family_of
from .checkpoint_code import AUTO_MAP, check_auto_map, copy_code, unchanged
from .objective import Likelihood
from .text_inputs import text_context_length


logger = logging.get_logger(__name__)

# Raised when a field is added or changed in a way that an earlier version would read wrongly.
CONFIG_FORMAT = 1
MEAN_DIRECTIONS = ("learned", "refined", "backbone")
FINGERPRINT_PARTS = {"dtype", "weights", "text", "image"}

# Fields of any configuration that transformers, its Trainer and its pipelines read or write without an attribute for
# them on the base class: kept without a warning.
LIBRARY_FIELDS = (
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "custom_pipelines",
    "eos_token_id",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "use_cache",
)


class AsymVLMConfig(PreTrainedConfig):
    r"""
    Configuration of an [`AsymVLMModel`].

    Args:
        vlm_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the backbone, copied; a dictionary needs its `model_type`. Without one the model is a head
            alone, which takes cached features.
        distribution (`str`, *optional*, defaults to `"power_spherical"`):
            Distribution of a text on the unit hypersphere: `"vmf"`, `"power_spherical"`, or `"deterministic"`,
            which trains the same head with the cosine objective of CLIP.
        mean_direction (`str`, *optional*, defaults to `"refined"`):
            `"learned"`: eta = MLP(text features), kappa = ‖eta‖, mu = eta / kappa. `"backbone"`: mu is the direction
            of the backbone's own text features and only kappa is learned, kappa = `initial_concentration` *
            exp(MLP(text features)); text-to-image ranking is then exactly that of the backbone. `"refined"`: kappa as
            for `"backbone"`, and mu, which starts at the backbone's direction u, is that of sqrt(d) u + MLP(text
            features), one perceptron with d + 1 outputs.
        normalizer (`str`, *optional*, defaults to `"exact"`):
            `"exact"`, or `"paper"` for the approximation F_d of the reference code.
        hidden_size (`int`, *optional*, defaults to 512): width of the hidden layers of the head.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of hidden layers of the head. The paper's head has 3, which overfits sooner.
        hidden_act (`str`, *optional*, defaults to `"relu"`): activation after each hidden layer.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.5):
            Dropout after each hidden layer, in [0, 1). The reference code has none.
        input_dropout_prob (`float`, *optional*, defaults to 0.3): dropout on the input of the head, in [0, 1).
        normalize_text_features (`bool`, *optional*, defaults to `True`):
            Whether the head sees the direction of the text features alone, scaled to length sqrt(d). As they are,
            their length drives kappa of texts unlike the training captions.
        initial_concentration (`float`, *optional*, defaults to 150.0):
            kappa of every text before training, > 0; not used with `mean_direction="learned"`.
        projection_dim (`int`, *optional*):
            Width d >= 2 of the joint embedding space. Defaults to the backbone's; needed where there is none.
        logit_scale_init (`float`, *optional*, defaults to 0.15): temperature tau before training, > 0.
        text_max_length (`int`, *optional*): tokens of a text at most. Defaults to the backbone's context.
        text_pad_token_id (`int`, *optional*): what the tokenizer pads with.
        text_use_attention_mask (`bool`, *optional*):
            Whether the backbone reads the attention mask; if not, texts are padded to `text_max_length`. Defaults to
            what its family was trained with.
        base_model_name_or_path (`str`, *optional*): where the backbone's weights come from.
        base_model_revision (`str`, *optional*): commit of the repository they come from.
        backbone_fingerprint (`dict`, *optional*):
            The backbone's features of a fixed example when the model was composed, reduced to a few numbers, by which
            loading a head-only checkpoint tells that its base has changed.
        save_backbone (`bool`, *optional*):
            Whether `save_pretrained` writes the backbone's weights too. By default it does unless they are
            available from a Hub repository at a known commit.
        format (`int`, *optional*, defaults to 1):
            Of the fields themselves. A configuration of a later format is refused, since its fields may mean something
            else; in a saved configuration of this one, fields of other programs are kept, with one warning.

    Raises:
        ValueError: for a value out of the ranges above, a later format, or an unknown argument where the configuration
            is written by hand.

    Example:

    ```python
    >>> from transformers import CLIPConfig
    >>> from modeling_asymvlm import AsymVLMConfig

    >>> AsymVLMConfig(vlm_config=CLIPConfig(projection_dim=256), distribution="vmf").projection_dim
    256
    ```
    """

    model_type = "asymvlm"
    sub_configs = {"vlm_config": AutoConfig}
    # Read before transformers 5.20 only: keeps the library from building a default instance of the backbone's
    # configuration in order to save differences, which some families refuse.
    has_no_defaults_at_init = True

    def __init__(
        self,
        vlm_config=None,
        distribution="power_spherical",
        mean_direction="refined",
        normalizer="exact",
        hidden_size=512,
        num_hidden_layers=1,
        hidden_act="relu",
        hidden_dropout_prob=0.5,
        input_dropout_prob=0.3,
        normalize_text_features=True,
        initial_concentration=150.0,
        projection_dim=None,
        logit_scale_init=0.15,
        text_max_length=None,
        text_pad_token_id=None,
        text_use_attention_mask=None,
        base_model_name_or_path=None,
        base_model_revision=None,
        backbone_fingerprint=None,
        save_backbone=None,
        format=CONFIG_FORMAT,
        **kwargs,
    ):
        _check_format(format)
        self.format = format
        self.vlm_config = _own_copy(vlm_config)
        self.distribution = distribution
        self.mean_direction = mean_direction
        self.normalizer = normalizer
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.input_dropout_prob = input_dropout_prob
        self.normalize_text_features = normalize_text_features
        self.initial_concentration = initial_concentration
        if self.vlm_config is not None:
            projection_dim = embedding_dim(self.vlm_config) if projection_dim is None else projection_dim
            text_max_length = text_context_length(self.vlm_config) if text_max_length is None else text_max_length
            if text_use_attention_mask is None:
                text_use_attention_mask = family_of(self.vlm_config).reads_text_mask
        self.projection_dim = projection_dim
        self.logit_scale_init = logit_scale_init
        self.text_max_length = text_max_length
        self.text_pad_token_id = text_pad_token_id
        self.text_use_attention_mask = text_use_attention_mask
        self.base_model_name_or_path = base_model_name_or_path
        self.base_model_revision = base_model_revision
        self.backbone_fingerprint = backbone_fingerprint
        self.save_backbone = save_backbone
        self.check_values()
        _check_fields(kwargs)
        check_auto_map(kwargs.get("auto_map"))
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in `PreTrainedConfig`. Raises `ValueError` for the configuration of another kind of model."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is the configuration of a model of type {model_type!r}, not of an AsymVLM checkpoint: to put a "
                "head on a backbone, use AsymVLMModel.from_vlm_pretrained with its name or folder."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self):
        """As in `PreTrainedConfig`; the format is always stated."""
        return {**super().to_diff_dict(), "format": self.format}

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """As in `PreTrainedConfig`; with an `auto_map`, as published checkpoints have, the code goes along."""
        with unchanged(self):
            # transformers itself copies the code of a class that it loaded from a repository.
            auto_map = getattr(self, "auto_map", None)
            if auto_map and self._auto_class is None:
                self.auto_map = {**auto_map, **AUTO_MAP}
                copy_code(save_directory)
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def law(self) -> Likelihood:
        """What a text says of images, as `distribution` and `normalizer` name it now: scores, objective, classes."""
        return Likelihood(self.distribution, self.normalizer)

    @property
    def text_config(self) -> PreTrainedConfig:
        """Of the backbone's text tower, as `get_text_config` finds it; an `AttributeError` without a backbone."""
        vlm_config: Any = self.vlm_config
        return vlm_config.text_config

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Of the backbone's image tower; an `AttributeError` without a backbone."""
        vlm_config: Any = self.vlm_config
        return vlm_config.vision_config

    @property
    def fixed_text_length(self) -> int | None:
        """Tokens that every text has for the backbone, or `None` if texts may differ in length."""
        return None if self.text_use_attention_mask else self.text_max_length

    def check_values(self) -> None:
        """Raises `ValueError` for a value out of range."""
        law = self.law
        if self.mean_direction not in MEAN_DIRECTIONS:
            raise ValueError(
                f"Unknown mean_direction {self.mean_direction!r}: choose one of {', '.join(MEAN_DIRECTIONS)}."
            )
        if not law.has_concentration and self.mean_direction == "backbone":
            raise ValueError(
                f"distribution={self.distribution!r} learns a direction only, so mean_direction='backbone' leaves "
                "nothing to learn: choose mean_direction='learned' or 'refined', or a distribution with a "
                "concentration."
            )
        for name, smallest in (("projection_dim", 2), ("hidden_size", 1), ("num_hidden_layers", 0)):
            value = getattr(self, name)
            if name == "projection_dim" and value is None and self.vlm_config is None:
                continue  # the library builds configurations without arguments; the model asks for a width
            if not isinstance(value, int) or value < smallest:
                raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")
        for name in ("logit_scale_init", "initial_concentration"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)!r}.")
        for name in ("hidden_dropout_prob", "input_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}.")
        if not isinstance(self.normalize_text_features, bool):
            raise ValueError(f"normalize_text_features must be true or false, got {self.normalize_text_features!r}.")
        fingerprint = self.backbone_fingerprint
        if fingerprint is not None and not (isinstance(fingerprint, dict) and fingerprint.keys() >= FINGERPRINT_PARTS):
            raise ValueError(
                f"backbone_fingerprint must hold {', '.join(sorted(FINGERPRINT_PARTS))}, got {fingerprint!r}: restore "
                "config.json, or leave it out."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"Unknown hidden_act {self.hidden_act!r}: choose one of {', '.join(sorted(ACT2FN))}.")


def _check_format(found: object) -> None:
    """Raises `ValueError` for a format that this version cannot read."""
    if not isinstance(found, int) or not 1 <= found <= CONFIG_FORMAT:
        raise ValueError(
            f"The configuration has the format {found!r}, and this version of modeling_asymvlm reads {CONFIG_FORMAT} "
            "at most: upgrade it; nothing was loaded."
        )


def _check_fields(fields: dict) -> None:
    """
    Warns of fields that neither this class nor transformers knows, which other tools write into saved configurations;
    raises `ValueError` for one in arguments written by hand, where it is a typo.
    """
    known = {*vars(PreTrainedConfig()), *inspect.signature(PreTrainedConfig.__init__).parameters, *LIBRARY_FIELDS}
    unknown = sorted(name for name in fields if name not in known and not name.startswith("_"))
    if not unknown:
        return
    if "model_type" not in fields:
        raise ValueError(
            f"Unknown fields in an AsymVLM configuration: {', '.join(unknown)}. Correct the spelling, or upgrade "
            "modeling_asymvlm if a later version has them; nothing was loaded."
        )
    logger.warning_once(
        f"The configuration holds fields that AsymVLM does not use: {', '.join(unknown)}. They are kept, and saved "
        "with it."
    )


def _forget_places(config: PreTrainedConfig | dict) -> None:
    """Forgets the folders that a configuration and its parts were read from: they have no place in a checkpoint."""
    values = config if isinstance(config, dict) else vars(config)
    if "_name_or_path" in values:
        values["_name_or_path"] = ""
    for value in values.values():
        if isinstance(value, PreTrainedConfig | dict):
            _forget_places(value)


def _own_copy(vlm_config: PreTrainedConfig | dict | None) -> PreTrainedConfig | None:
    """A copy, since a configuration shared with a live backbone would lose that model its attention implementation."""
    if vlm_config is None:
        return None
    if isinstance(vlm_config, PreTrainedConfig):
        own = copy.deepcopy(vlm_config)
        _forget_places(own)
        return own
    if not isinstance(vlm_config, dict):
        raise ValueError(
            f"vlm_config must be a configuration or a dictionary, got {vlm_config!r}: to compose a model from the "
            "name of a backbone, use AsymVLMModel.from_vlm_pretrained."
        )
    values = copy.deepcopy(vlm_config)
    _forget_places(values)
    model_type = values.pop("model_type", None)
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type](**values)
    if "auto_map" in values:
        return RemoteCodeConfig(code_model_type=model_type, **values)
    raise ValueError(f"vlm_config needs the `model_type` of a backbone that transformers knows, got {model_type!r}.")
