"""The commands: one module or folder each, from options to results, around the graph of `pipelines.curate`."""
