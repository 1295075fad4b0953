"""The embedded pictures: what is drawn, how, and the files they are kept in."""
