"""The text that a model reads: templates, special tokens, and windows of texts to tokenise."""
