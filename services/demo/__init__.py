"""The demo: a day at five gateways, told as it happens, checked as it is told."""
