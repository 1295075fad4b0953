"""The core's losses. Configs import no torch; the losses are built inside ``build``."""
