"""Optional dependencies: which extra of the package brings what, named in every error."""

import importlib.util
import sys


# By the module that an import statement names: the extra to install.
EXTRAS = {
    "PIL": "train",
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "faiss": "search",
    "filelock": "train",
    "fsspec": "train",
    "gradio": "demo",
    "lancedb": "lancedb",
    "matplotlib": "plots",
    "onnx": "export",
    "onnxscript": "export",
    "psutil": "train",
    "pyarrow": "train",
    "scipy": "train",
    "sentencepiece": "siglip",
    "yaml": "train",
}


def missing_extra(name: str, module: str) -> ImportError:
    """The error that says which extra brings `module`, which `name` needs."""
    return ImportError(f'{name} needs {module}: pip install "modeling-asymvlm[{EXTRAS[module]}]"', name=module)


def require(name: str, *modules: str) -> None:
    """Raises `ImportError` with the extra to install for the first of `modules` that `name` needs and is not there."""
    for module in modules:
        absent = sys.modules[module] is None if module in sys.modules else importlib.util.find_spec(module) is None
        if absent:
            raise missing_extra(name, module)
