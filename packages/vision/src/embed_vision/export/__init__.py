"""Export of image-text models."""
