"""The commands of the package, and the only place that knows flags: `python -m modeling_asymvlm COMMAND`."""

# Each is a module here whose `main(arguments)` returns an exit code.
COMMANDS = {
    "train": "train a head on your pairs or features, evaluate it and save it with a model card",
    "evaluate": "figures of a trained model on other data",
    "publish": "upload a checkpoint with its code and its card to the Hub",
    "triage": "rank captions from vague to specific, flag near-duplicates and contradictions",
    "convert": "make a store of the features that clip-retrieval computed",
    "example": "train on the embedded Scenes example, offline",
}
