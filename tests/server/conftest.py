"""The desk fixture, for every test of the server's logic."""

from tests.server.desk import desk

__all__ = ["desk"]
