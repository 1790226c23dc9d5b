"""Beam pipelines that score a corpus with a reward model and keep the responses worth fine-tuning on."""
