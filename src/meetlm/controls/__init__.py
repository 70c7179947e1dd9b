"""Controls make a language model follow levels. They may replace layers' forward methods; they know no loss."""
