"""An OpenAI-compatible server whose requests each choose their level, and its playground."""
