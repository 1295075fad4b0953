"""`embed prove`: one batch's loss and gradient, computed in every way the loop has."""
