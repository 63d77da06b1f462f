"""Tasks: one file each, named as profiles write it.

A task says how rows become batches, what a model's raw outputs mean, the metric, and the pre- and post-processing that
ships with the file, so that exporters, runners and the gate never ask "is it text?".
"""
