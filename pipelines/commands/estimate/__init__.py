"""`bestkept plan`: rows, tokens, time and cost of a run, estimated before it starts."""
