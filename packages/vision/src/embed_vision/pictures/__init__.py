"""The embedded pictures: what is drawn, how it is drawn, and the files it is cached in."""
