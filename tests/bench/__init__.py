"""Ratios beside their floors."""
