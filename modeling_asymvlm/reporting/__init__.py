"""Figures, tables, plots, the model card and the files of a run."""
