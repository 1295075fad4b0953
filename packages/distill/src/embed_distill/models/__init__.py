"""Students: projections into the teacher's space, and layers taken from the teacher."""
