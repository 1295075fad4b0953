"""Image-text datasets: reading rows, checking them, and decoding pictures."""
