"""AsymVLM: probabilistic text embeddings on the unit hypersphere for any frozen vision–text model."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from ._version import __version__
from .configuration_asymvlm import AsymVLMConfig
from .modeling_asymvlm import AsymVLMModel, AsymVLMOutput, ProbabilisticTextHead
from .pipelines import TextUncertaintyPipeline


AutoConfig.register(AsymVLMConfig.model_type, AsymVLMConfig)
AutoModel.register(AsymVLMConfig, AsymVLMModel)
AutoModelForZeroShotImageClassification.register(AsymVLMConfig, AsymVLMModel)
PIPELINE_REGISTRY.register_pipeline(
    "text-uncertainty", pipeline_class=TextUncertaintyPipeline, pt_model=AutoModel, type="text"
)

__all__ = [
    "AsymVLMConfig",
    "AsymVLMModel",
    "AsymVLMOutput",
    "ProbabilisticTextHead",
    "TextUncertaintyPipeline",
    "__version__",
]
