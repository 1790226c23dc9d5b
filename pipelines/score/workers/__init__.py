"""Worker processes of this machine, each with its own model: `runner.workers`.

It imports nothing: a worker gives signs of life before it imports Beam.
"""
