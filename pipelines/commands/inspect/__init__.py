"""`bestkept inspect`: the way that rows are read, with numbers and examples of the text."""
