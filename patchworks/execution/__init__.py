"""Engines: how batches of tiles are run. One small adapter per engine."""
