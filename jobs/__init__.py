"""WHAT HAPPENS BY ITSELF. Imports app and models, never views."""
