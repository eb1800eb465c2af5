"""What a fused graph is: the role and block of every operator, and its attention."""
