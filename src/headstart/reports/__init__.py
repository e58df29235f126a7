"""What a study leaves for its readers: a terminal table, figures and one page; never imports torch."""
