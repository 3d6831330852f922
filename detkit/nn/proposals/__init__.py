"""Where regions come from when no network proposes them."""
