"""`embed data inspect`: measures of rows, and how they are shown."""
