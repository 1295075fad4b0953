"""Student models: projections into the teacher's space, and layers initialised from the teacher."""
