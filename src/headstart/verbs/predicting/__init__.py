"""What a finetuned RUN predicts of images: one file for each task, and the work that all of them share."""
