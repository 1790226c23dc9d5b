"""`bestkept select --explain`: each step's verdict on the responses to a prompt."""
