"""Checkpoints: loading weights, other libraries' conventions, adapters, and the memory that weights take."""
