"""Looks at data and detectors: the doctor, and the report of a detector as a page."""
