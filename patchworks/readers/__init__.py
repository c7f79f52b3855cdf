"""Readers of microscope files: one module per format, one interface for all."""
