"""`bestkept trial`: short fine-tunes of a small model on a selection, on random responses and on the longest ones."""
