"""Embedding Studio: search that learns from clicks."""
