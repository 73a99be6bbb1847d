"""Files that are whole or absent, checks of input; knows nothing of models."""
