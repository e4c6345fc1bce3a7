"""Rolecall: an MCP server that gives AI clients a staff of local models."""
