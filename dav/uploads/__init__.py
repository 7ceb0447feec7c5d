"""Uploads in several requests: chunks that are put and then moved into place, and TUS."""
