"""The columns of a corpus: detecting what each holds, and mapping rows to prompts and responses."""
