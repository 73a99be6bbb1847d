"""Makes AsymVLM known to the Auto classes and the pipelines of transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_asymvlm import AsymVLMConfig
from .model.modeling_asymvlm import AsymVLMModel
from .texts.pipeline import TextUncertaintyPipeline


AutoConfig.register(AsymVLMConfig.model_type, AsymVLMConfig)
AutoModel.register(AsymVLMConfig, AsymVLMModel)
AutoModelForZeroShotImageClassification.register(AsymVLMConfig, AsymVLMModel)
PIPELINE_REGISTRY.register_pipeline(
    "text-uncertainty", pipeline_class=TextUncertaintyPipeline, pt_model=AutoModel, type="text"
)
