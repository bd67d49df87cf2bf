"""What `python -m benchmarks.report` is made of: from raw curves to targets, ratios, a regression, plots and tables."""
