"""Reports: one HTML page and its Markdown version, made from the records of evaluations. Scores and samples nothing."""
