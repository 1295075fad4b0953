"""Plugins: the hooks they implement, and the manager that discovers and activates them."""
