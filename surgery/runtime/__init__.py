"""The modelling code that travels inside a converted checkpoint, and its registration with transformers."""
