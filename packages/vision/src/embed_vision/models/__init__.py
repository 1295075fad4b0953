"""Image-text models: CLIP-style, composed, vision-language, and from scratch."""
