"""`bestkept inspect`: how rows are read, with numbers and examples of the text."""
