"""Long runs that kill things."""
