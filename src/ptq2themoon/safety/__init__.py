"""What keeps runs and results whole: recorded code, files that are on the disk, a look before jobs start."""
