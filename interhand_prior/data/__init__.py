"""Where pairs come from: one module per source, each of which yields `TwoHands`. `synthetic` makes its own."""
