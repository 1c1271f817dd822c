"""Each port's behaviour, written once, run on memory and on the real thing."""
