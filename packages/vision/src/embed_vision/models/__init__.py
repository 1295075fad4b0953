"""Image-text models: CLIP-style, composed and vision-language ones, and CLIP from scratch."""
