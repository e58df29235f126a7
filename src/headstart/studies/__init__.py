"""Studies: from one file of settings to cells, runs, statistics and a verdict."""
