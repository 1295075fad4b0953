"""embed-hello: what a third party writes to bring a model, a loss, a sampler and a checkpoint layout to `embed`."""

__version__ = "0.1.0"
