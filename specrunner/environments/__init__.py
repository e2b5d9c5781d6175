"""The Python environments that engines run in: found, installed from locks, examined."""
