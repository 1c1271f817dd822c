"""Everything that takes something away, in pairs: what the second answers holds for the first, too."""
