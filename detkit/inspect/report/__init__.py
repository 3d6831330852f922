"""One static page that explains a detector."""
