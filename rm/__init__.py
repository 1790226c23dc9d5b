"""Reward models: preferences, the Bradley-Terry loss, training, and exact scoring. Knows nothing of pipelines."""
