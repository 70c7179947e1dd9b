"""Controls: what makes a language model obey a level. May hook a model; knows no loss and no optimiser."""
