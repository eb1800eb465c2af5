"""Training on calibration images: what is learned, a loop that can be resumed, losses, and units in order."""
