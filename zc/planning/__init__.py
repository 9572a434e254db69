"""``zc plan``: which pass pipelines fit a model onto a device and what they cost, before a run."""
