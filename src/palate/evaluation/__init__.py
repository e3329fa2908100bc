"""Was it an improvement: paired comparisons, win rates with intervals, and the page that shows them."""
