"""What is measured, one program per question; `results/` holds the outcomes."""
