"""Controls make a language model follow levels. They may replace layers' forward methods, but have no loss."""
