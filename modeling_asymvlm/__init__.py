"""AsymVLM: probabilistic text embeddings on the unit hypersphere for any frozen vision–text model."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification

from ._version import __version__
from .configuration_asymvlm import AsymVLMConfig
from .modeling_asymvlm import AsymVLMModel, AsymVLMOutput, ProbabilisticTextHead


AutoConfig.register(AsymVLMConfig.model_type, AsymVLMConfig)
AutoModel.register(AsymVLMConfig, AsymVLMModel)
AutoModelForZeroShotImageClassification.register(AsymVLMConfig, AsymVLMModel)

__all__ = ["AsymVLMConfig", "AsymVLMModel", "AsymVLMOutput", "ProbabilisticTextHead", "__version__"]
