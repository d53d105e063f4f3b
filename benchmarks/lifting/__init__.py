"""Table 2's experiment in small: images as 2D joints, a network that lifts them, its training and its errors."""
