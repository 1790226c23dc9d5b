"""The kinds of stores: local disk, S3 and Google Cloud Storage, with their failures, retries and ranged reads."""
