"""Layers with weights: backbones, necks, heads, and what they share."""
