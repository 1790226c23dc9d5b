"""The end of a run: the manifest that makes an output complete, and versions, retention and upload of complete outputs."""
