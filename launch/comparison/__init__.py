"""What launch.compare is made of: the grid of its runs, and what it says of them."""
