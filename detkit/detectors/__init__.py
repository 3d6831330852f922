"""One file per published detector, and the `match` that builds them."""
