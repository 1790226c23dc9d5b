"""Train reward models, score corpora with them, keep the best responses: the commands of `bestkept` as functions."""
