"""One static page about a training, for those who decide about the model: collect -> tidy tables -> figures -> HTML."""
