"""The parts of `data_card.py`: what is measured (surfaces, poses, real), drawn (sheets) and written (readme, text)."""
