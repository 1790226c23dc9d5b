"""Reward models: preferences, the Bradley-Terry loss, training, and exact scoring. It does not import `pipelines`."""
