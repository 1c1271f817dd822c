"""What goes out: answers, problems, views, and what is counted of them."""
