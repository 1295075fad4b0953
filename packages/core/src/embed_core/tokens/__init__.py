"""Token lists kept between epochs and runs, so that a text is tokenised once."""
