"""The launcher's world: its claims, engines' names, devices, collectives, stopping."""
