"""Losses and smoothing: pure functions of tensors."""
