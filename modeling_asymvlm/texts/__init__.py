"""What a model says of texts: encoding, words, divergences, entailment, near-duplicates, triage, the pipeline."""
