"""The convergence laboratory: what is trained (grids, networks, images, schedules), how a run goes on after any stop, and where."""
