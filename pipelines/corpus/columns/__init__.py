"""The columns of a corpus: detecting their roles, and mapping rows to prompts and responses."""
