"""Turns texts into token lists and tensors: tokenizers, prompts, padded or packed chunks, pooling, token caches."""
