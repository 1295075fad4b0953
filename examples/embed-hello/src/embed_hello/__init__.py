"""embed-hello: a complete third-party plugin with a model, a loss, a sampler and a checkpoint layout for `embed`."""

__version__ = "0.1.0"
