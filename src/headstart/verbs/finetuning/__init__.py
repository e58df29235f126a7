"""What is learned from labels: one file for each task, and the loop that all of them share."""
