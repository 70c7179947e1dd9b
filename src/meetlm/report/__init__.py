"""Reports: an evaluation's record in, one HTML page and its Markdown out. Scores nothing and draws no sample."""
